"""One file per paper. Each has `get_config(arg)` and starts with its command, cost and result."""
