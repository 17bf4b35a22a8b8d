"""`lock`, live: the lock file of a mounted workspace, and what is mounted by it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import ownconfig
from clivefs.daemon.control import Progress
from clivefs.daemon.following import Following
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly import locking
from clivefs.mounts.config import lockfile, trust


class Locking:
    """The lock files of mounted workspaces."""

    def __init__(
        self,
        workspaces: Workspaces,
        following: Following,
        from_thread: Callable[[Progress], Callable[[str], None]],
    ) -> None:
        self._workspaces = workspaces
        self._following = following
        self._from_thread = from_thread

    async def lock(self, args: dict[str, Any], progress: Progress) -> Any:
        """Lock the entries at `paths` (all, where there are none) to what they are now, or with `check` say whether
        what they are locked to can be had: `{"file", "written", "entries": [Finding.describe()...]}`."""
        live = self._workspaces.get(args["workspace"])
        if live.error is not None:
            raise ClivefsError(live.error)
        say = self._from_thread(progress)
        settings, paths = live.settings, args.get("paths") or ()
        places = live.assembly.surroundings()
        refused = trust.not_allowed(settings, self._workspaces.trust, live.id)
        file = os.path.join(live.root, lockfile.FILE_NAME)
        if args.get("check"):
            found = await trio.to_thread.run_sync(
                lambda: locking.check(places, settings, ownconfig.read_lock(live), paths, refused, say)
            )
            return {"file": file, "written": False, "entries": [each.describe() for each in found]}

        def write() -> tuple[locking.LockPlan, bool]:
            before = ownconfig.read_lock(live)
            plan = locking.look_up(places, settings, before, paths, refused, say)
            return plan, not args.get("dry_run") and ownconfig.write_lock(live, plan.lock, before=before)

        plan, written = await trio.to_thread.run_sync(write)
        if written:
            await self._following.reload(live)
            if live.error is not None:
                raise ClivefsError(live.error)
            await self._workspaces.caches.settled()
        return {"file": file, "written": written, "entries": [each.describe() for each in plan.findings]}
