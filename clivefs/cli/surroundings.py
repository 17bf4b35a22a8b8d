"""The world around one call: environment, home, current directory. Read here, and nowhere else in clivefs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from clivefs.base.errors import ClivefsError


class Surroundings(NamedTuple):
    """What a command may know of where it was started."""

    environ: Mapping[str, str]
    home: str
    directory: str
    """The current directory, absolute and without links."""
    uid: int

    @property
    def store(self) -> str:
        """The store to use where `--store` is not given."""
        named = self.environ.get("CLIVEFS_STORE")
        if named:
            return os.path.join(self.directory, named)
        data = self.environ.get("XDG_DATA_HOME", "")
        # The XDG specification: a relative path is invalid and to be ignored.
        return os.path.join(data if os.path.isabs(data) else os.path.join(self.home, ".local/share"), "clivefs")

    @property
    def user_ignore(self) -> str:
        """Where git looks for what it ignores everywhere, unless it is configured."""
        config = self.environ.get("XDG_CONFIG_HOME") or os.path.join(self.home, ".config")
        return os.path.join(config, "git", "ignore")

    @property
    def mountpoint(self) -> str:
        """The mountpoint to use where `--at` is not given."""
        return os.path.join(self.home, "clive")


def read() -> Surroundings:
    """The surroundings of this process."""
    try:
        directory = os.getcwd()
    except OSError as error:
        raise ClivefsError(
            f"the current directory cannot be used: {error.strerror}", remedy="change to another: cd"
        ) from None
    home = os.path.expanduser("~")
    return Surroundings(os.environ, home if os.path.isabs(home) else "/", directory, os.geteuid())
