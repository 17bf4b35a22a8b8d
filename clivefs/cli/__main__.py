"""`python -m clivefs.cli`: the same as the installed `clivefs`."""

from clivefs.cli.main import program

program()
