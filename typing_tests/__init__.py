"""What type checkers see of the public names: `make lint` checks these files by mypy and pyright, nothing runs them.

An ignored error is a part of it: both report an ignore that is not needed.
"""
