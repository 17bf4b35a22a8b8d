"""What `clivefs watch` and git's fsmonitor ask for: that there is a new point, and what has changed since one."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Collection
from typing import Any

import trio

from clivefs.daemon.control import Progress
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.points.changed import ChangedTree
from clivefs.mounts.recording.parts import within
from clivefs.mounts.view import CONTROL, View

NAME = b"changed"
ALL = b"/"
"""Anything may have changed."""

_LOOK_S = 0.01
_WAIT_S = 20.0
"""After this long a request is answered, though nothing happened: who asked may be gone."""
_DRAIN_S = 2.0
_PATHS_MAX = 10_000
_TOKEN = "clivefs."


class Watching:
    """The commands of those who want to hear of changes, and `.clive/changed`. Methods are for the loop's thread."""

    def __init__(
        self,
        view: View,
        workspaces: Workspaces,
        recording: Recording,
        *,
        look_outside: Callable[[], None],
        drain: Callable[[float], bool],
    ) -> None:
        """*look_outside*: has the kernel told of what has changed outside by now; *drain*: waits until it is, in a
        thread."""
        self._view = view
        self._workspaces = workspaces
        self._recording = recording
        self._look_outside = look_outside
        self._drain = drain
        self._shown: dict[str, ChangedTree] = {}

    def show(self, live: LiveWorkspace) -> None:
        """Let `changed` be in the control directory of *live*, if it is not yet."""
        if live.control is None or live.id in self._shown:
            return
        ask = functools.partial(self._ask, live)
        tree = ChangedTree(self._view.table, identity=live.id.encode(), owner=self._view.owner, ask=ask)
        self._view.show_in_control(live.control, {NAME: tree.root})
        self._shown[live.id] = tree

    def hide(self, live: LiveWorkspace) -> None:
        """*live* has left."""
        tree = self._shown.pop(live.id, None)
        if tree is not None:
            DetachedTree(tree, self._view.table, tree.close)

    async def watch(self, args: dict[str, Any], progress: Progress) -> Any:
        """Return when there is a point with a higher number than `seq`, or the workspace leaves, or after a while."""
        seq = int(args["seq"])
        name = args["workspace"]
        live = self._workspaces.live.get(name)
        with trio.move_on_after(_WAIT_S):
            while live is not None and self._workspaces.live.get(name) is live:
                head = self._recording.head_of(live)
                if head is not None and head.seq > seq:
                    return {"seq": head.seq, "left": False}
                await trio.sleep(_LOOK_S)
        return {"seq": seq, "left": live is None or self._workspaces.live.get(name) is not live}

    async def changed(self, args: dict[str, Any], progress: Progress) -> Any:
        """As `.clive/changed/TOKEN` has it, in base64."""
        live = self._workspaces.get(args["workspace"])
        make = self._ask(live, args["token"].encode(), base64.b64decode(args["directory"]))
        return base64.b64encode(await trio.to_thread.run_sync(make)).decode()

    def _ask(self, live: LiveWorkspace, token: bytes, directory: bytes) -> Callable[[], bytes]:
        """What makes the answer: all that is known to have changed since the token, or to be about to be recorded. Who
        has it sees those changes through the mount too."""
        self._look_outside()
        recording = self._recording.of(live)
        dirty = recording.unrecorded()
        unrecorded = directory.partition(b"/")[0] == CONTROL  # a fork, or the past
        # What [sessions] exclude names is not recorded, though git may track it.
        if unrecorded or dirty is None or not recording.hears_all() or live.settings.sessions.exclude:
            return lambda: _answer(token, None, directory)
        recent = recording.recent
        prefix = f"{_TOKEN}{live.id}.{recent.instance}.".encode()
        number = token.removeprefix(prefix)
        since = recent.since(int(number)) if number != token and number.isdigit() else None
        paths = None if since is None else since | dirty | recording.left_out()
        answer = _answer(prefix + b"%d" % recent.turn, paths, directory)
        return lambda: answer if self._drain(_DRAIN_S) else _answer(token, None, directory)


def _answer(token: bytes, paths: Collection[bytes] | None, directory: bytes) -> bytes:
    """*token* and those of *paths* that are below *directory*; None: anything may have changed."""
    if paths is None or within(paths, directory):
        return token + b"\0" + ALL + b"\0"
    below = directory + b"/" if directory else b""
    mine = sorted(path[len(below) :] for path in paths if path.startswith(below) and not _is_gits(path))
    if len(mine) > _PATHS_MAX:
        return token + b"\0" + ALL + b"\0"
    return b"\0".join((token, *mine, b""))


def _is_gits(path: bytes) -> bool:
    return b"/.git/" in b"/" + path + b"/"
