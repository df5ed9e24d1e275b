"""The commands of the package: flags, messages and exit codes. Nothing imports them."""
