"""What going back from one point to another comes to, for a mounted workspace: which files are to be made, and which
are left alone, with the reason.

Names that were one file become one again, as far as they are among the paths that were asked for and lie in one mount
entry: all of them get the new file then, those too that differ in nothing. A name that was asked for without the others
becomes a file of its own, and the others stay what they are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Set
from contextlib import suppress
from typing import NamedTuple

import msgspec

from clivefs.base.errors import ClivefsError
from clivefs.daemon.applying import Target, entry_of, tree_of
from clivefs.daemon.changing import CONFIG
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.attributes import may_give
from clivefs.mounts.config import config
from clivefs.mounts.config import file as config_file
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import Differs, Links, State, compare, file_at
from clivefs.mounts.points.point import Point
from clivefs.mounts.recording.parts import within
from clivefs.mounts.steps import Wanted


class Plan(NamedTuple):
    """What going back comes to."""

    differs: list[Differs]
    """What is to be changed, and is told."""
    left_alone: dict[bytes, str]
    """What is not, with the reason."""
    owners: list[bytes]
    """What differs in its owner alone, which we may not give."""
    mounts: bool
    """Other entries are mounted then: what differs in those is to be looked at when they are."""
    targets: list[Target]
    """What is to be there: `differs`; names that become one file with one of them; and, with times, the directories
    above, as what changes in them gives them another."""

    def unowned(self) -> list[bytes]:
        """The paths that are not going to have the owner that they had."""
        return sorted([*self.owners, *(each.path for each in self.differs if _may_not_own(each))])


def plan(
    live: LiveWorkspace,
    reader: JoinedObjects,
    before: Point,
    after: Point,
    paths: list[bytes],
    known: bool,
    left_out: Set[bytes],
    times: bool,
) -> Plan:
    """How to go from the point *before*, which is now but for *left_out*, to *after* at *paths*. Not *known*:
    ClivefsError for a path that neither has. For threads."""
    states = State(before.tree, before.meta), State(after.tree, after.meta)
    found: dict[bytes, Differs] = {}
    for path in paths:
        differs = {each.path: each for each in compare(reader, *states, path, times=times)}
        if not differs and not known:
            _check_known(reader, states, after, path)
        found |= differs
    now, then = _entries(live.settings), _entries_at(live, reader, states[1])
    others = {path for path in now.keys() | then.keys() if now.get(path) != then.get(path)}
    mounts = CONFIG in found and bool(others) and live.root_tree.writable
    made = Plan([], {}, [], mounts, [])
    for path in sorted(found):
        entry = next((each for each in others if within((each,), path)), None)
        if entry is not None and mounts:
            continue  # it goes or comes with its entry, whose files are not ours to remove or to make
        if entry is not None and entry not in then:
            place = os.fsdecode(entry)
            made.left_alone[path] = f"{place} was no mount entry then; `clivefs detach {place}` takes it away"
        elif path in left_out:
            made.left_alone[path] = "what it is now could not be recorded, so nothing would bring that back"
        elif _may_not_own(found[path]) and _is_owner_alone(found[path], times):
            made.owners.append(path)
        else:
            made.differs.append(found[path])

    def is_free(path: bytes) -> bool:
        """Whether a name that differs in nothing may get another file."""
        return within(paths, path) and path not in found and path not in left_out and not within(others, path)

    groups = _groups(live, reader, states, made.differs, is_free)
    grouped = {each.path for group in groups for each in group}
    made.targets.extend(_target(each, times) for each in made.differs if each.path not in grouped)
    for number, group in enumerate(groups, 1):
        kept = [_kept_ns(each) for each in group]
        time_ns = max(each for each in kept if each is not None) if None not in kept else None
        for each in group:
            wanted, oid = _target(each, times)
            mtime_ns = wanted.mtime_ns if times else time_ns
            made.targets.append(Target(wanted._replace(mtime_ns=mtime_ns, link=number), oid))
    if times:
        above = {each.path.rpartition(b"/")[0] for each in made.differs} - found.keys() - {b""}
        there = {path: file_at(reader, states[1], path) for path in above}
        made.targets.extend(_target(Differs(path, file, file), times) for path, file in there.items() if file)
    return made


def _entries_at(live: LiveWorkspace, reader: JoinedObjects, state: State) -> dict[bytes, MountEntry]:
    """The mount entries that Clive.toml has in a state. Where it cannot be read, those of now that were shown."""
    name = live.settings.file
    file = file_at(reader, state, CONFIG)
    if file is not None and file.oid is not None and stat.S_ISREG(file.mode):
        with suppress(ClivefsError):
            text = config_file.decode(reader.read(file.oid)[1], file=name)
            return _entries(config.parse(text, file=name, root=live.root))
    now = _entries(live.settings)
    return {path: entry for path, entry in now.items() if file_at(reader, state, path) is not None}


def _entries(settings: Workspace) -> dict[bytes, MountEntry]:
    """By path; where in the file they are does not count."""
    return {os.fsencode(each.path): msgspec.structs.replace(each, line=0) for each in settings.mounts}


def _check_known(reader: JoinedObjects, states: tuple[State, State], after: Point, path: bytes) -> None:
    """ClivefsError for a path that neither state has."""
    if path and all(file_at(reader, state, path) is None for state in states):
        raise ClivefsError(
            f"it is not recorded now, and was not at {after.name}",
            place=os.fsdecode(path),
            remedy="`clivefs log` shows what was recorded",
        )


def _is_owner_alone(differs: Differs, times: bool) -> bool:
    _, before, after = differs
    if before is None or after is None or (times and not before.times_as(after)):
        return False
    return before.same_but_owner(after) and not before.owned_as(after)


def _may_not_own(differs: Differs) -> bool:
    """Whether what is to be there would have an owner that we may not give."""
    _, before, after = differs
    if after is None or after.owner is None or may_give(*after.owner):
        return False
    # A directory that is there keeps the owner that it has.
    return not (stat.S_ISDIR(after.mode) and before is not None and before.owner == after.owner)


def _groups(
    live: LiveWorkspace,
    reader: JoinedObjects,
    states: tuple[State, State],
    differs: list[Differs],
    is_free: Callable[[bytes], bool],
) -> list[list[Differs]]:
    """Those of *differs* that were one file with another name, each with those: of *differs* too, or free."""
    changed = {each.path: each for each in differs if each.after is not None}
    numbers = {each.after.link for each in changed.values() if each.after is not None} - {0}
    if not numbers:
        return []
    links = Links(reader, *states)
    groups: list[list[Differs]] = []
    for number in sorted(numbers):
        by_entry: dict[str, list[Differs]] = {}
        for path in sorted(links.after[number]):
            entry = entry_of(live, path)
            if path in changed or (is_free(path) and tree_of(live, entry).writable):
                by_entry.setdefault(entry, []).append(links.files[path])
        groups += (group for group in by_entry.values() if len(group) > 1)
    return groups


def _kept_ns(differs: Differs) -> int | None:
    """The time that a file keeps, as its content stays; None: it gets another."""
    _, before, after = differs
    if before is None or after is None or before.facts is None or stat.S_ISDIR(after.mode):
        return None
    same = before.oid == after.oid and stat.S_IFMT(before.mode) == stat.S_IFMT(after.mode)
    return before.facts.mtime_ns if same else None


def _target(differs: Differs, times: bool) -> Target:
    path, before, file = differs
    had_links = before is not None and before.link != 0
    if file is None:
        return Target(Wanted(path, 0, had_links=had_links))
    facts = file.facts
    if not times:
        mtime_ns = _kept_ns(differs)
    else:
        mtime_ns = facts.mtime_ns if facts is not None else None
    uid, gid = file.owner if file.owner is not None else (None, None)
    return Target(
        Wanted(
            path,
            file.mode,
            mtime_ns,
            uid,
            gid,
            facts.xattrs if facts is not None else (),
            is_new=before is None,
            rdev=facts.rdev if facts is not None else 0,
            had_links=had_links,
        ),
        file.oid,
    )
