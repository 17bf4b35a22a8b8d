"""What the control socket can ask for. Each command is one coroutine: arguments in, a JSON value out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import trio

from clivefs import __version__
from clivefs.base.errors import ClivefsError
from clivefs.daemon import ownconfig, recovery
from clivefs.daemon.collecting import Collecting
from clivefs.daemon.control import Command, Progress
from clivefs.daemon.following import Following
from clivefs.daemon.forks.commands import Forking
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.locking import Locking
from clivefs.daemon.overlays.commands import Overlays
from clivefs.daemon.recording import Recording
from clivefs.daemon.sessions import Sessions
from clivefs.daemon.settings import Settings
from clivefs.daemon.watching import Watching
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import State
from clivefs.mounts.config import config
from clivefs.mounts.config import edit as config_edit
from clivefs.mounts.config.source_notation import parse_source
from clivefs.mounts.git.exclude import exclude

log = logging.getLogger(__name__)


class Commands:
    """The commands of one daemon."""

    def __init__(
        self,
        workspaces: Workspaces,
        following: Following,
        recording: Recording,
        sessions: Sessions,
        forking: Forking,
        watching: Watching,
        settings: Settings,
        stop: Callable[[], None],
        collecting: Collecting,
    ) -> None:
        self._workspaces = workspaces
        self._following = following
        self._recording = recording
        self._sessions = sessions
        self._forking = forking
        self._settings = settings
        self._stop = stop
        self._collecting = collecting
        self._overlays = Overlays(workspaces, _from_thread)
        self._watching = watching
        self._locking = Locking(workspaces, following, _from_thread)

    def table(self) -> dict[str, Command]:
        return {
            "status": self._status,
            "unmount": self._unmount,
            "mount": self._mount,
            "leave": self._leave,
            "attach": self._attach,
            "detach": self._detach,
            "replace": self._replace,
            "reload": self._reload,
            "allow": self._allow,
            "lock": self._locking.lock,
            "overlay_diff": self._overlays.diff,
            "overlay_reset": self._overlays.reset,
            "overlay_export": self._overlays.export,
            "overlay_commit": self._overlays.commit,
            "overlay_rebase": self._overlays.rebase,
            "overlay_resolve": self._overlays.resolve,
            "blame": self._overlays.blame,
            "snapshot": self._sessions.snapshot,
            "session_new": self._sessions.new,
            "restore": self._sessions.restore,
            "undo": self._sessions.undo,
            "redo": self._sessions.redo,
            "fork": self._forking.make,
            "fork_list": self._forking.list_all,
            "fork_audit": self._forking.audit,
            "fork_where": self._forking.where,
            "fork_show": self._forking.show,
            "fork_diff": self._forking.diff,
            "fork_drop": self._forking.drop,
            "merge": self._forking.merge,
            "run_begin": self._forking.begin,
            "run_end": self._forking.end,
            "watch": self._watching.watch,
            "changed": self._watching.changed,
            "fsck": self._fsck,
            "give_back": self._give_back,
        }

    async def _status(self, args: dict[str, Any], progress: Progress) -> Any:
        return {
            "daemon": {
                "pid": os.getpid(),
                "mountpoint": self._settings.mountpoint,
                "transport": self._settings.transport,
                "version": __version__,
                "store": self._settings.store,
                "log": self._settings.log,
                "nodes": self._workspaces.known_files(),
            },
            "workspaces": self._workspaces.status(),
        }

    async def _unmount(self, args: dict[str, Any], progress: Progress) -> Any:
        users = await trio.to_thread.run_sync(recovery.users_of, self._settings.mountpoint)
        self._stop()
        return {"mountpoint": self._settings.mountpoint, "users": users}

    async def _mount(self, args: dict[str, Any], progress: Progress) -> Any:
        name = await self._workspaces.add(args["root"], allow=bool(args.get("allow")), progress=_from_thread(progress))
        await self._workspaces.caches.settled()
        return {"name": name, "mountpoint": self._settings.mountpoint}

    async def _leave(self, args: dict[str, Any], progress: Progress) -> Any:
        name = args["name"]
        await self._recording.leave(self._workspaces.get(name))
        self._workspaces.remove(name)
        await self._workspaces.caches.settled()
        return {"name": name, "left": self._workspaces.names()}

    # The mount table

    async def _attach(self, args: dict[str, Any], progress: Progress) -> Any:
        def edit(text: str, live: LiveWorkspace) -> str:
            source = parse_source(args["source"], ref=args.get("ref"))
            file = live.settings.file
            return config_edit.attach(
                text, args["path"], source, patches=args.get("patches") or (), write=args.get("write"), file=file
            )

        result = await self._edit("attach", args, progress, edit)
        if not args.get("dry_run"):
            live = self._workspaces.get(args["workspace"])
            try:
                result["excluded_in"] = await trio.to_thread.run_sync(exclude, live.root, args["path"])
            except OSError as error:
                log.warning("info/exclude of the enclosing repository: %s", error)
        return result

    async def _detach(self, args: dict[str, Any], progress: Progress) -> Any:
        def edit(text: str, live: LiveWorkspace) -> str:
            return config_edit.detach(text, args["path"], file=live.settings.file)

        return await self._edit("detach", args, progress, edit)

    async def _replace(self, args: dict[str, Any], progress: Progress) -> Any:
        def edit(text: str, live: LiveWorkspace) -> str:
            source = parse_source(args["source"], ref=args.get("ref"))
            patches = args.get("patches") or None
            file = live.settings.file
            return config_edit.replace(text, args["path"], source, patches=patches, write=args.get("write"), file=file)

        return await self._edit("replace", args, progress, edit)

    async def _edit(
        self, command: str, args: dict[str, Any], progress: Progress, edit: Callable[[str, LiveWorkspace], str]
    ) -> Any:
        """Edit Clive.toml as the user asked by *command*, allow what that adds, and show it. What cannot be shown is
        refused before anything is written."""
        live = self._workspaces.get(args["workspace"])
        args["path"] = config_edit.normal_path(args["path"])
        file = live.settings.file
        say = _from_thread(progress)

        def change() -> tuple[str, str, config.Workspace]:
            old = ownconfig.read_text(live)
            new = edit(old, live)
            parsed = config.parse(new, file=file, root=live.root)
            entry = parsed.entry(args["path"])
            if entry is not None:
                found = live.assembly.prepare(entry, None, say, look_only=True)
                found.discard()
                if found.state is not State.MOUNTED:
                    raise ClivefsError(found.error or "it cannot be mounted", place=args["path"])
            if not args.get("dry_run"):
                self._workspaces.allow(live, parsed, only=[args["path"]])
            return old, new, parsed

        old, new, parsed = await trio.to_thread.run_sync(change)
        entry = parsed.entry(args["path"])
        if args.get("dry_run"):
            return {"path": args["path"], "source": entry.source if entry else None, "dry_run": True}
        shown = live.entries.get(args["path"])
        told = f"{command} {args['path']}" + (f" {entry.source}" if entry else "")
        try:
            await self._following.edit(
                live,
                old,
                new,
                retry=shown is not None and shown.state is State.ERROR,
                origin=f"command:{command}",
                message=told,
            )
        finally:
            self._workspaces.caches.forget_names([(live.root_tree.root, ownconfig.NAME, None)])
        await self._workspaces.caches.settled()
        return self._entry_result(live, args["path"])

    def _entry_result(self, live: LiveWorkspace, path: str) -> dict[str, Any]:
        mounted = live.entries.get(path)
        if mounted is None:
            return {"path": path, "state": "detached"}
        return self._workspaces.describe_entry(live, mounted)

    async def _reload(self, args: dict[str, Any], progress: Progress) -> Any:
        live = self._workspaces.get(args["workspace"])
        await self._following.reload(live, retry=True)
        await self._workspaces.caches.settled()
        return self._workspaces.describe(live)

    async def _allow(self, args: dict[str, Any], progress: Progress) -> Any:
        live = self._workspaces.get(args["workspace"])
        await trio.to_thread.run_sync(lambda: self._workspaces.allow(live, ownconfig.load(live)))
        await self._following.reload(live, retry=True)
        await self._workspaces.caches.settled()
        return self._workspaces.describe(live)

    async def _give_back(self, args: dict[str, Any], progress: Progress) -> Any:
        """After a collection by another process: disk that only who has the store open can give back."""
        return {"bytes": await trio.to_thread.run_sync(self._collecting.give_back)}

    async def _fsck(self, args: dict[str, Any], progress: Progress) -> Any:
        return await trio.to_thread.run_sync(self._workspaces.fsck)


def _from_thread(progress: Progress) -> Callable[[str], None]:
    """*progress* for any thread, also one that trio did not start, and at any time: a source keeps it."""
    token = trio.lowlevel.current_trio_token()

    def say(text: str) -> None:
        try:
            trio.from_thread.run(progress, text, trio_token=token)
        except (trio.RunFinishedError, trio.Cancelled):
            log.debug("the daemon ends: %s", text)

    return say
