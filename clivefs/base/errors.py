"""The errors that people read: what was wrong, where, and what to do about it.

File operations inside a mounted tree raise `OSError` with the errno that the matching system call
would give (see `clivefs.mounts.tree`); everything else that a person or a caller must be told raises
a `ClivefsError`. Only `cli/` turns one into prose and an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class ClivefsError(Exception):
    """A failure that the message explains; `exit_code` is what the command line exits with (1 or 2)."""

    exit_code = 1

    def __init__(
        self, message: str, *, place: str | None = None, remedy: str | None = None, also: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        """Where: `FILE:LINE: key`, a path, a peer."""
        self.remedy = remedy
        """What the reader can do, as an imperative sentence or a command to type."""
        self.also = tuple(also)
        """What else is wrong, each with its place and remedy, as text."""

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return "\n".join((f"{text}\n  {self.remedy}" if self.remedy else text, *self.also))


class UsageError(ClivefsError):
    """The call itself was wrong: exit code 2."""

    exit_code = 2
