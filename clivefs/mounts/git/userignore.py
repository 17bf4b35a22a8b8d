"""What the user has git ignore everywhere: the file of `core.excludesFile`, editors' swap files mostly.

It is read by a child. It may lie anywhere, also behind links that lead into a mount of ours, and a thread of the daemon
that waited for the daemon's own mount could not be killed.
"""

from __future__ import annotations

import logging
import os
import subprocess

from clivefs.mounts.git.command import GitCommand, GitFailed

log = logging.getLogger(__name__)

USER_IGNORE_BYTES_MAX = 256 << 10
"""Of a larger file only this much counts."""
_TIMEOUT_S = 5.0


def user_ignore(directory: str, default: str) -> bytes:
    """The patterns that git goes by, after all others, in *directory*; *default*: the file where none is configured."""
    try:
        named = GitCommand().run(
            ["config", "--type=path", "--default", default, "--get", "core.excludesFile"],
            cwd=directory,
            timeout_s=_TIMEOUT_S,
        )
        path = os.path.join(os.fsencode(directory), named.removesuffix(b"\n"))
        done = subprocess.run(
            ["head", "-c", str(USER_IGNORE_BYTES_MAX), "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (GitFailed, OSError, subprocess.TimeoutExpired) as error:
        log.info("what git ignores everywhere is not known: %s", error)
        return b""
    return done.stdout if done.returncode == 0 else b""
