"""`overlay rebase` and `overlay resolve`: patches and edits of an entry onto another release."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import make_directories
from clivefs.daemon import ownconfig
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.overlays import reading, target
from clivefs.daemon.overlays.moving import ATTEMPTS_MAX, Moving, Step, WrittenMeanwhile, alone
from clivefs.daemon.overlays.reading import Edits, all_changes, changed, keep_for_forks, shown_version
from clivefs.daemon.overlays.spans import standing_still
from clivefs.daemon.overlays.target import Based, Target
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import Prepared, State
from clivefs.mounts.config import config
from clivefs.mounts.config import edit as config_edit
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.config.source_notation import COMMIT, parse_source
from clivefs.mounts.edits import converting, journal, still, workingtree
from clivefs.mounts.edits.diff import Version, patch_of
from clivefs.mounts.edits.journal import GitMove, PatchChange, Rebase, Unsolved
from clivefs.mounts.edits.layering import mtime_of
from clivefs.mounts.edits.plan import RebasePlan, has_markers, plan_rebase
from clivefs.mounts.edits.still import UNSEEN
from clivefs.mounts.edits.write import hide_file
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor
from clivefs.mounts.git.treemerge import Labels
from clivefs.mounts.overlay.upper import has_edits
from clivefs.objects.errors import ObjectMissing

_FETCHES_MAX = 500
_RESCUED = "rescued"


class _Onto(NamedTuple):
    """Where an entry is to go."""

    entry: MountEntry
    toml: tuple[str, str]
    base: bytes
    """The tree of the release."""
    reader: Reader
    commit: bytes | None
    fetch: Callable[[list[bytes]], None] | None


class Rebasing:
    """Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces, moves: Moving) -> None:
        self._workspaces = workspaces
        self._moving = moves

    # Onto another release

    async def rebase(self, there: Target, to: str, progress: Callable[[str], None], *, dry_run: bool) -> dict[str, Any]:
        """Move the patches and edits of an entry onto the ref or version *to*."""
        target.based(there, "rebase")
        target.whole_entry(there, "rebase")
        async with alone(there.live, there.path):
            based = target.based(target.anew(self._workspaces, there), "rebase")
            self._check(based)
            onto = await trio.to_thread.run_sync(self._look, based, to, progress)
            for _ in range(ATTEMPTS_MAX):
                seen = await self._moving.settled_look(based.target)
                edits = await reading.edits(based.target.tree, self._workspaces.scratch())
                plan = await trio.to_thread.run_sync(self._plan, based, onto, edits)
                result = _tell(based, onto, plan, dry_run=dry_run)
                if dry_run or (plan.changes_nothing and onto.entry == based.mounted.entry):
                    return result
                step = await trio.to_thread.run_sync(self._step, based, onto, plan, edits)
                step.seen = seen
                same = [each for each in plan.resets if each in plan.unchanged]
                times = {each: mtime_of(based.target.tree, each) for each in same}
                step.times_ns = {each: time_ns for each, time_ns in times.items() if time_ns is not None}
                try:
                    await self._moving.carry(step, progress)
                except WrittenMeanwhile:
                    continue
                return result
        raise ClivefsError(
            "it is being written to all the time", place=there.path, remedy="stop what writes there first"
        )

    def _check(self, based: Based) -> None:
        live, mounted, path = based.target.live, based.mounted, based.target.path
        if journal.load(self._workspaces.store, journal.key(live.id, path)) is not None:
            raise ClivefsError(
                "a rebase of it is under way",
                place=path,
                remedy="solve its conflicts (`clivefs overlay resolve`), or take it back with --abort",
            )
        error = mounted.error if mounted.state is not State.BEHIND else None
        if error is not None or mounted.series.error is not None:
            raise ClivefsError(f"it is not as it should be: {error or mounted.series.error}", place=path)

    def _look(self, based: Based, to: str, progress: Callable[[str], None]) -> _Onto:
        """Find the release *to*. For threads."""
        live, entry = based.target.live, based.mounted.entry
        before = ownconfig.read_text(live)
        after = config_edit.update(before, entry.path, _changes(entry, to), file=live.settings.file)
        new = config.parse(after, file=live.settings.file, root=live.root).entry(entry.path)
        assert new is not None
        found = live.assembly.prepare(new, None, progress, look_only=True)
        try:
            if found.state is not State.MOUNTED:
                raise ClivefsError(found.error or "it cannot be mounted", place=entry.path)
            if based.mounted.git_dir is not None:
                workingtree.check(based.mounted.git_dir, entry.path)
            return self._onto(live, new, (before, after), found)
        finally:
            found.discard()

    def _onto(self, live: LiveWorkspace, new: MountEntry, toml: tuple[str, str], found: Prepared) -> _Onto:
        if found.resolved is not None:
            assert found.source is not None
            fetch = found.source.fetch_objects if found.source.lazy else None
            return _Onto(new, toml, found.resolved.tree, found.resolved.repository, found.resolved.commit, fetch)
        assert found.published is not None
        return _Onto(new, toml, found.published.tree, self._workspaces.store, None, None)

    def _plan(self, based: Based, onto: _Onto, edits: Edits) -> RebasePlan:
        """For threads: may fetch what both have changed."""
        old, new = based.mounted.entry, onto.entry
        reader = self._reader(based, onto)
        labels = Labels(_label(old), "your edits", _label(new))
        if onto.fetch is not None:
            onto.fetch(_wanted(reader, (based.base, based.patched, onto.base), edits))
        for _ in range(_FETCHES_MAX):
            try:
                plan = plan_rebase(
                    reader,
                    self._workspaces.store,
                    old_base=based.base,
                    new_base=onto.base,
                    patches=based.mounted.series.patches,
                    edits=edits.files,
                    labels=labels,
                    scratch=self._workspaces.scratch(),
                )
            except ObjectMissing as missing:
                if onto.fetch is None:
                    raise
                onto.fetch([missing.oid])
                continue
            return dataclasses.replace(plan, kept=edits.kept)
        raise ClivefsError("what both have changed cannot be fetched", place=old.path)

    def _reader(self, based: Based, onto: _Onto) -> JoinedObjects:
        readers: list[Reader] = [self._workspaces.store, onto.reader]
        if based.mounted.resolved is not None:
            readers.append(based.mounted.resolved.repository)
        return JoinedObjects(readers, self._workspaces.scratch())

    def _step(self, based: Based, onto: _Onto, plan: RebasePlan, edits: Edits) -> Step:
        """For threads."""
        live, mounted = based.target.live, based.mounted
        entry = mounted.entry
        contents = dict(mounted.series.patches)
        patches = []
        toml = onto.toml
        for layer in plan.layers:
            gone = layer.state in ("empty", "edits")
            if gone or layer.patch is not None:
                patches.append(PatchChange.of(layer.name, contents[layer.name], None if gone else layer.patch))
            if gone:
                toml = (toml[0], _without_pattern(toml[1], entry.path, layer.name, file=live.settings.file))
        new = config.parse(toml[1], file=live.settings.file, root=live.root).entry(entry.path)
        assert new is not None
        places = live.assembly.surroundings()
        uppers = (places.upper_name(entry), places.upper_name(new))
        if uppers[0] != uppers[1]:
            _refuse_edits(places.entry_directory(uppers[1]), new)
        git = None
        if mounted.git_dir is not None and mounted.resolved is not None and onto.commit is not None:
            git = GitMove(mounted.git_dir.path, mounted.resolved.commit.hex(), onto.commit.hex())
        record = Rebase(
            entry=journal.key(live.id, entry.path),
            before=entry.source,
            after=new.source,
            state=journal.STARTED,
            patches=tuple(patches),
            path=entry.path,
            uppers=uppers,
            toml=toml,
            times=self._moving.kept_times(based),
            git=git,
        )
        after = dataclasses.replace(record, state=journal.UNSOLVED, conflicts=_unsolved(plan))
        mismatch = "the patches that were rewritten do not make what was planned; nothing has changed"
        reader = self._reader(based, onto)
        return Step(based, record, after, new, plan, reader, UNSEEN, mismatch)

    # Back

    async def abort(self, there: Target, progress: Callable[[str], None], *, dry_run: bool) -> dict[str, Any]:
        """Take the rebase of an entry back."""
        live, path = there.live, there.path
        target.whole_entry(there, "rebase --abort")
        async with alone(live, path):
            there = target.anew(self._workspaces, there)
            rebase = self._under_way(there)
            result: dict[str, Any] = {
                "path": path,
                "from": rebase.after,
                "to": rebase.before,
                "patches": [change.path for change in rebase.patches],
                "kept": [],
                "dry_run": dry_run,
            }
            if dry_run:
                return result
            if rebase.git is not None:
                assert there.mounted is not None
                assert there.mounted.git_dir is not None
                await trio.to_thread.run_sync(workingtree.check, there.mounted.git_dir, path)
            for _ in range(ATTEMPTS_MAX):
                seen = await self._moving.settled_look(there)
                rescued = await self._rescue(there)
                await keep_for_forks(there.tree, [each.path for each in await all_changes(there.tree)])
                async with live.recording_now, standing_still(there.tree):
                    if seen.same_as(await trio.to_thread.run_sync(still.look, there.upper)):
                        result["kept"] = [*rescued, *await self._moving.back(live, rebase, progress)]
                        return result
                for file in rescued:
                    os.unlink(file)  # it has not all of it
        raise ClivefsError("it is being written to all the time", place=path, remedy="stop what writes there first")

    def _under_way(self, there: Target) -> Rebase:
        rebase = journal.load(self._workspaces.store, journal.key(there.live.id, there.path))
        if rebase is None:
            raise ClivefsError("no rebase of it is under way", place=there.path)
        assert there.mounted is not None
        if there.live.assembly.surroundings().upper_name(there.mounted.entry) != rebase.uppers[1]:
            raise ClivefsError(
                f"it shows another source now than {rebase.after}",
                place=there.path,
                remedy=f"`clivefs replace {there.path} {rebase.after}` first",
            )
        return rebase

    async def _rescue(self, there: Target) -> list[str]:
        """Keep the edits as they are now, as a patch: what is taken back is not lost."""
        changes = [each async for each in changed(there.tree, b"")]
        scratch = self._workspaces.scratch()
        changes = await trio.to_thread.run_sync(converting.stored_changes, there.tree.lower, changes, scratch)
        patch = await trio.to_thread.run_sync(patch_of, changes, scratch)
        if not patch:
            return []
        directory = os.path.join(os.fspath(self._workspaces.store.path), _RESCUED)
        make_directories(directory)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        file = os.path.join(directory, f"{os.path.basename(there.path)}-{stamp}-{os.urandom(2).hex()}.patch")
        await trio.to_thread.run_sync(write_whole, file, patch)
        return [file]

    async def _stored(self, there: Target, files: dict[bytes, Version | None]) -> dict[bytes, Version | None]:
        scratch = self._workspaces.scratch()
        return await trio.to_thread.run_sync(converting.stored, there.tree.lower, files, scratch)

    # Conflicts

    async def resolve(self, there: Target, names: list[str], *, force: bool, dry_run: bool) -> dict[str, Any]:
        """Note that the conflicts in these files are solved, and take away what lies beside them."""
        target.whole_entry(there, "resolve")
        store, key = self._workspaces.store, journal.key(there.live.id, there.path)
        files = target.files_of(there, names)
        async with alone(there.live, there.path):
            there = target.anew(self._workspaces, there)
            rebase = self._under_way(there)
            unsolved = {conflict.path: conflict for conflict in rebase.conflicts}
            for path in files:
                shown = os.fsdecode(path)
                if shown not in unsolved:
                    waiting = ", ".join(unsolved)
                    raise ClivefsError(
                        "there is no conflict in this file", place=shown, remedy=f"unsolved are: {waiting}"
                    )
                shown_as = await shown_version(there.tree, path)
                version = (await self._stored(there, {path: shown_as}))[path]
                if version is not None and has_markers(version.content) and not force:
                    raise ClivefsError(
                        "conflict markers are still in it", place=shown, remedy="take them out, or say --force"
                    )
            removed = [name for path in files for name in unsolved[os.fsdecode(path)].aside]
            if not dry_run:
                there_still = {change.path for change in await all_changes(there.tree)}
                for name in removed:
                    if os.fsencode(name) in there_still:
                        hide = os.fsencode(name)
                        affected = await reading.waiting(lambda: hide_file(there.tree, hide))  # noqa: B023
                        self._workspaces.caches.forget_names(affected)
                reading.note_changes(there.tree)
                FAULTS.hit("rebase.aside-gone")
                for path in files:
                    await trio.to_thread.run_sync(journal.solved, store, key, os.fsdecode(path))
                await self._workspaces.caches.settled()
        solved = [os.fsdecode(path) for path in files]
        return {
            "path": there.path,
            "solved": solved,
            "removed": removed,
            "conflicts": [path for path in unsolved if path not in solved],
            "dry_run": dry_run,
        }


def _changes(entry: MountEntry, to: str) -> dict[str, str | None]:
    """The keys of an entry that say the ref or version *to*. UsageError where that is none."""
    if entry.kind == "git":
        ref = parse_source(f"git+{entry.location}", ref=to).ref
        changes: dict[str, str | None] = {"ref": ref}
        if ref is not None and COMMIT.fullmatch(ref):
            changes["follow"] = None
        return changes
    if entry.kind == "archive":
        source = parse_source(to if to.startswith("archive:") else f"archive:{to}")
    else:
        mark = "==" if entry.kind == "pypi" else "@"
        name = entry.location.rpartition(mark)[0]
        source = parse_source(to if to.startswith(f"{entry.kind}:") else f"{entry.kind}:{name}{mark}{to}")
        if source.location.rpartition(mark)[0] != name:
            raise ClivefsError(
                f"{to} is no release of {name}", place=entry.path, remedy="`clivefs replace` shows another module"
            )
    return {source.kind: source.location, "sha256": None}


def _label(entry: MountEntry) -> str:
    """What the markers call a release."""
    return entry.location if entry.kind != "git" else entry.ref or "HEAD"


def _wanted(reader: JoinedObjects, trees: tuple[bytes, ...], edits: Edits) -> list[bytes]:
    """The blobs of the edited files, as far as they can be told now."""
    wanted: dict[bytes, None] = {}
    for tree in trees:
        editor = TreeEditor(reader, tree)
        for path in edits.files:
            version = editor.get(path)
            if version is not None:
                wanted[version.oid] = None
    return list(wanted)


def _without_pattern(text: str, path: str, pattern: str, *, file: str) -> str:
    """*text* without the patch file, where `patches` names it in full: a file that is gone is an error there."""
    entry = config.parse(text, file=file, root=os.path.dirname(file)).entry(path)
    assert entry is not None
    if pattern not in entry.patches:
        return text
    left = [each for each in entry.patches if each != pattern]
    return config_edit.update(text, path, {"patches": left or None}, file=file)


def _refuse_edits(directory: str, entry: MountEntry) -> None:
    """ClivefsError where edits of the other release are kept already."""
    if has_edits(directory):
        raise ClivefsError(
            f"there are edits of yours on {entry.source} already",
            place=entry.path,
            remedy=f"`clivefs replace {entry.path} {entry.source}` shows them; export or reset them, and come back",
        )


def _unsolved(plan: RebasePlan) -> tuple[Unsolved, ...]:
    return tuple(
        Unsolved(
            os.fsdecode(conflict.path),
            conflict.why,
            tuple(os.fsdecode(name) for name in plan.beside.get(conflict.path, ())),
        )
        for conflict in plan.conflicts
    )


def _tell(based: Based, onto: _Onto, plan: RebasePlan, *, dry_run: bool) -> dict[str, Any]:
    return {
        "path": based.target.path,
        "from": based.mounted.entry.source,
        "to": onto.entry.source,
        "patches": [{"name": layer.name, "state": layer.state} for layer in plan.layers],
        "files": sorted({os.fsdecode(write.path) for write in plan.writes} | {os.fsdecode(p) for p in plan.resets}),
        "conflicts": [{"path": each.path, "kind": each.kind, "aside": list(each.aside)} for each in _unsolved(plan)],
        "renames": [[os.fsdecode(old), os.fsdecode(new)] for old, new in plan.renames],
        "locked_as": based.target.live.assembly.locked_as(onto.entry),
        "dry_run": dry_run,
    }
