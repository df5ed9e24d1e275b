"""Files that are damaged on purpose, format by format: what reading them ends in."""
