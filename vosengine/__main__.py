"""`python -m vosengine`: the command line."""

from .cli.app import main

main()
