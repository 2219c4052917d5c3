"""The work behind the command line, as plain functions: they take values and return values."""
