"""A census of Python's standard library: tasks that share live state, and outlive their worker."""
