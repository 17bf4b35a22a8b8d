"""What a command changes in a workspace: files, and with its Clive.toml also what is mounted. All of it in one point.

Where the workspace's Clive.toml is among the files, they are shown first, and then what it says is; nothing is recorded
in between. A Clive.toml that cannot be in force (it was recorded half written, say) is changed as any other file is:
everything that is mounted stays, and `status` tells why.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import ownconfig
from clivefs.daemon.applying import Applied, LiveChanges, Target
from clivefs.daemon.following import Following, check_stays
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.mounts.config import config, lockfile
from clivefs.mounts.config import file as config_file
from clivefs.mounts.git.joined import JoinedObjects

CONFIG = config.FILE_NAME.encode()
LOCK = lockfile.FILE_NAME.encode()


class _Config(NamedTuple):
    """What Clive.toml says and is to say, and what Clive.lock is to; None: what it does."""

    old: str
    new: str
    locked: lockfile.Lock | None


class Changing:
    """Changes mounted workspaces. Methods are for the loop's thread."""

    def __init__(self, changes: LiveChanges, recording: Recording, following: Following) -> None:
        self._changes = changes
        self._recording = recording
        self._following = following

    async def change(
        self,
        live: LiveWorkspace,
        targets: Sequence[Target],
        reader: JoinedObjects,
        *,
        before: bytes,
        origin: str,
        message: str,
        begin: Callable[[], None] = lambda: None,
    ) -> Applied:
        """Let *live* show *targets*, planned for the point *before*; *reader* has their content. It is recorded as the
        doing of *origin*, in a point called *message*. ChangedMeanwhile, ClivefsError, OSError: nothing has changed.
        *begin* is called just before something does: until then it may be cancelled."""
        recording = self._recording.of(live)
        paths = {target.wanted.path for target in targets}

        def still() -> bool:
            if not recording.claim(before, paths, origin, message):
                return False
            begin()
            return True

        found = await trio.to_thread.run_sync(_config_among, live, targets, reader)
        if found is None:
            return await self._changes.apply(live, targets, reader, still, recording.know)
        others = [target for target in targets if target.wanted.path != CONFIG]
        own = next((target.wanted for target in targets if target.wanted.path == CONFIG), None)
        applied = Applied((), ())
        owned = True

        async def change_files() -> None:
            nonlocal applied
            if others:
                applied = await self._changes.apply(live, others, reader, still, recording.know)

        async def dress_config() -> None:
            nonlocal owned
            if own is not None:
                owned, _ = await self._changes.dress(live, own)

        begin()  # a Clive.toml that is half changed is nothing to leave behind
        await self._following.edit(
            live,
            found.old,
            found.new,
            retry=False,
            origin=origin,
            message=message,
            locked=found.locked,
            first=change_files,
            last=dress_config,
        )
        done = (CONFIG,) if own is not None else ()
        not_owned = () if owned else (CONFIG,)
        return Applied((*applied.done, *done), applied.refused, (*applied.not_owned, *not_owned))


def _config_among(live: LiveWorkspace, targets: Sequence[Target], reader: JoinedObjects) -> _Config | None:
    """What *targets* make of Clive.toml and Clive.lock; None where that is nothing, or cannot be in force. For
    threads."""
    wanted = {target.wanted.path: target for target in targets if target.wanted.path in (CONFIG, LOCK)}
    if not wanted or not live.root_tree.writable:
        return None
    try:
        old = new = ownconfig.read_text(live)
        if CONFIG in wanted:
            new = _text(wanted[CONFIG], reader, live.settings.file)
        if new == old and LOCK not in wanted:
            return None  # its permissions are others, say
        check_stays(live, config.parse(new, file=live.settings.file, root=live.root))
        locked: lockfile.Lock | None = None
        if LOCK in wanted:
            file = ownconfig.read_lock(live).file
            locked = lockfile.Lock(file, {})
            if wanted[LOCK].wanted.mode:
                locked = lockfile.parse(_text(wanted[LOCK], reader, file), file=file)
    except ClivefsError:
        return None
    return _Config(old, new, locked)


def _text(target: Target, reader: JoinedObjects, file: str) -> str:
    if target.oid is None or not stat.S_ISREG(target.wanted.mode):
        raise ClivefsError("is not a regular file", place=file)
    return config_file.decode(reader.read(target.oid)[1], file=file)
