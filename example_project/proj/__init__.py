"""A census of Python's standard library: an example of tasks that share a memory."""
