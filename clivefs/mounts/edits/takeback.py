"""Bringing back what was before a rebase: patch files, Clive.toml, the git working tree, the upper.

Each part may be done again. `take_back` does all of them for a workspace that is not mounted: so a mount after a crash
finds every rebase done, or not begun. Live, the daemon does them one by one, the upper in the span that shows it.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import os
from collections.abc import Iterable
from contextlib import suppress

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.config import edit as config_edit
from clivefs.mounts.config import file as config_file
from clivefs.mounts.edits import journal, saved, workingtree
from clivefs.mounts.edits.journal import Rebase
from clivefs.mounts.edits.ownpatches import Own
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.host.calls import DIRECTORY_FLAGS
from clivefs.objects.interface import ObjectStore

log = logging.getLogger(__name__)

_TIMES = "times"


def recover(store: ObjectStore, workspace_id: str, own: Own, uppers: str) -> list[str]:
    """Take back every rebase of a workspace that a crash cut short; the paths of their entries.

    *own*: its files; *uppers*: the directory with the uppers of its entries, none of them open. ClivefsError, OSError.
    """
    done = []
    for rebase in journal.of_workspace(store, workspace_id):
        if rebase.state in (journal.STARTED, journal.ABORTING):
            take_back(store, rebase, own, uppers)
            log.info("%s: what was under way when the daemon ended was taken back", rebase.path)
            done.append(rebase.path)
    return done


def take_back(store: ObjectStore, rebase: Rebase, own: Own, uppers: str) -> None:
    """Everything as it was before *rebase*, of which nothing is open."""
    restore_files(rebase, own)
    if rebase.git is not None:
        workingtree.back(rebase.git)
    if rebase.state == journal.STARTED and not is_moving(uppers, rebase):
        # Nothing has changed in the upper, and it has what was written since.
        if rebase.times is not None:
            write_whole(os.path.join(uppers, rebase.uppers[0], _TIMES), base64.b64decode(rebase.times))
        journal.end(store, rebase.entry)
        return
    uppers_fd = open_uppers(uppers)
    try:
        rebuild_upper(store, rebase, uppers, uppers_fd)
        exchange_upper(rebase, uppers_fd)
        throw_away_uppers(rebase, uppers_fd)
    finally:
        os.close(uppers_fd)
    journal.end(store, rebase.entry)


def begin_moving(uppers: str, name: str) -> None:
    """Note, durably, that the upper *name* is changed from here on. For threads."""
    path = os.path.join(uppers, name)
    os.close(os.open(os.path.join(path, saved.MOVING), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    fd = os.open(path, DIRECTORY_FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def end_moving(uppers: str, names: Iterable[str]) -> None:
    """Take that note back, where there is one."""
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(uppers, name, saved.MOVING))


def is_moving(uppers: str, rebase: Rebase) -> bool:
    """Whether the upper may be anything between before and after *rebase*."""
    return any(os.path.lexists(os.path.join(uppers, name, saved.MOVING)) for name in rebase.uppers)


def open_uppers(uppers: str) -> int:
    return os.open(uppers, DIRECTORY_FLAGS)


def restore_files(rebase: Rebase, own: Own) -> list[str]:
    """Let the patch files and Clive.toml be what they were. What the user made of one since is kept beside it, under
    the names that are returned."""
    kept = []
    for change in rebase.patches:
        own.sweep(change.path)
        now = own.read(change.path)
        if now == change.old:
            continue
        if now is not None and now != change.new:
            kept.append(own.keep_copy(change.path))
        own.write(change.path, change.old)
    FAULTS.hit("rebase.patches-back")
    _restore_config(rebase, own)
    return kept


def _restore_config(rebase: Rebase, own: Own) -> None:
    before, after = rebase.toml
    if before == after:
        return
    file = config_file.FILE_NAME
    now = own.config()
    if now == before:
        return
    if now == after:
        own.save_config(now, before)
        return
    # Somebody has edited it since: only the entry goes back.
    try:
        old, new_keys = (config_file.read_toml(text, file=file)[0]["mounts"][rebase.path] for text in rebase.toml)
        changes = {key: old.get(key) for key in old.keys() | new_keys.keys() if old.get(key) != new_keys.get(key)}
        new = config_edit.update(now, rebase.path, changes, file=file)
    except ClivefsError as error:
        log.warning("%s: its entry in Clive.toml stays as it is: %s", rebase.path, error)
        return
    own.save_config(now, new)


def rebuild_upper(store: ObjectStore, rebase: Rebase, uppers: str, uppers_fd: int) -> None:
    """Make the old upper, with the times of its entry, beside the present one."""
    kept = store.get_ref(journal.ref_name(rebase.entry))
    if kept is None:
        raise ClivefsError("what was kept of the edits is gone", place=rebase.path)
    name = rebase.uppers[0]
    saved.rebuild(uppers_fd, os.fsencode(name), store, kept)
    if rebase.times is not None:
        write_whole(os.path.join(uppers, f"{name}.restoring", _TIMES), base64.b64decode(rebase.times))


def exchange_upper(rebase: Rebase, uppers_fd: int) -> None:
    """Put it in the place of the present one: one system call."""
    saved.exchange(uppers_fd, os.fsencode(rebase.uppers[0]))


def throw_away_uppers(rebase: Rebase, uppers_fd: int) -> None:
    """Do away with the present one, and with the one that the entry had afterwards under another name."""
    before, after = (os.fsencode(each) for each in rebase.uppers)
    saved.throw_away(uppers_fd, before)
    if after != before:
        saved.remove(uppers_fd, after, before)


def abandoned(rebase: Rebase) -> Rebase:
    """*rebase* as it is recorded while it is taken back."""
    return dataclasses.replace(rebase, state=journal.ABORTING)
