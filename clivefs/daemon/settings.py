"""What a daemon is started with: the one message that the command line hands it."""

from __future__ import annotations

from typing import Literal

import msgspec

Transport = Literal["pyfuse3", "native"]
"""What carries requests: libfuse, or our own driver of the protocol."""


class WorkspaceRequest(msgspec.Struct, frozen=True):
    """A workspace to mount: its directory, and whether its user allows what its Clive.toml asks for."""

    root: str
    allow: bool = False


class Settings(msgspec.Struct, frozen=True):
    """Everything that a daemon takes from outside. Paths are absolute and without links."""

    mountpoint: str
    store: str
    workspaces: list[WorkspaceRequest] = []
    allow_other: bool = False
    foreground: bool = False
    log: str | None = None
    runtime: str | None = None
    notify_socket: str | None = None
    network_timeout_s: float = 30.0
    transport: Transport = "pyfuse3"
    user_ignore: str = ""
    """The file of what git ignores everywhere, for users who have not configured another; empty for none."""

    @property
    def log_place(self) -> str:
        """Where a person finds what the daemon logs."""
        return self.log or "what it wrote to its standard error"
