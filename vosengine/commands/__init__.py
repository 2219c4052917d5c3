"""Implementation of the commands as functions, independent of the command line."""
