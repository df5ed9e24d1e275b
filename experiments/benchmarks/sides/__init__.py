"""What `speed` measures: its rows, the processes that run them, and the page."""
