"""The command line: what a person types and reads.

The only reader of the environment, the home directory and the terminal; everything below gets these as
arguments. May import everything of ours. To stay quick, a command's module is imported when that command
is called (`table.load`), and nothing imports them directly.
"""

from clivefs.cli.main import main, program

__all__ = ["main", "program"]
