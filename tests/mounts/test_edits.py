"""Edits as trees, commits and rebases: nothing lost, and the same as stock git reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.edits import journal as rebasejournal
from clivefs.mounts.edits import still
from clivefs.mounts.edits.diff import Changed, Version, patch_of, stat_of
from clivefs.mounts.edits.journal import PatchChange, Rebase, Unsolved
from clivefs.mounts.edits.plan import RebasePlan, edited_tree, has_markers, plan_rebase, shown_files, tree_changes
from clivefs.mounts.edits.saved import restore_upper, save_upper
from clivefs.mounts.edits.write import carry_out, hide_file, read_file, show_file
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.git.treemerge import Labels
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.overlay.upper import Upper
from clivefs.mounts.patch.apply import apply_patch
from clivefs.mounts.tree import Owner
from clivefs.objects.fsck import fsck
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.gitworlds import (
    ENVIRONMENT,
    World,
    done,
    edited,
    fresh,
    get_world,
    put_world,
    read_world,
    run,
    text,
    worlds,
    write_world,
)

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
US = Owner(os.geteuid(), os.getegid())
LABELS = Labels("x 1.0", "your edits", "x 2.0")
LINES = [f"line {number}\n" for number in range(1, 21)]
GIT = GitCommand(environment=ENVIRONMENT)


def changed(*changes: tuple[int, str]) -> str:
    lines = list(LINES)
    for number, line in changes:
        lines[number - 1] = line
    return "".join(lines)


def edits_between(before: World, after: World) -> dict[bytes, Version | None]:
    return {
        path: Version(*after[path]) if path in after else None
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def diff(before: World, after: World, scratch: Path) -> bytes:
    return patch_of(
        [
            Changed(path, Version(*before[path]) if path in before else None, version)
            for path, version in edits_between(before, after).items()
        ],
        str(scratch),
    )


def plan(
    store: ObjectStore,
    scratch: Path,
    old: World,
    new: World,
    shown: World,
    patches: list[tuple[str, bytes]] | None = None,
    patched: World | None = None,
) -> RebasePlan:
    return plan_rebase(
        store,
        store,
        old_base=put_world(store, old),
        new_base=put_world(store, new),
        patches=patches or [],
        edits=edits_between(patched if patched is not None else old, shown),
        labels=LABELS,
        scratch=str(scratch),
    )


def leads_to_itself(item: tuple[bytes, tuple[int, bytes]]) -> bool:
    """Whether a file is a link `a -> a/b`. Stock git cannot put a directory in its place: `git apply` looks for `a/x`
    before it removes `a`, and "Too many levels of symbolic links" is not the answer that it expects."""
    path, (mode, content) = item
    return mode == 0o120000 and content.startswith(path.rpartition(b"/")[2] + b"/")


# Trees


def test_records_of_before_and_after_are_one_edit() -> None:
    one, two = Version(0o100644, b"1"), Version(0o100644, b"2")
    assert shown_files([Changed(b"f", one, None), Changed(b"f", None, two), Changed(b"g", one, None)]) == {
        b"f": two,
        b"g": None,
    }


@FEW
@given(data=st.data())
def test_edits_exported_as_a_layer_show_the_same(data: st.DataObject, tmp_path: Path) -> None:
    base = data.draw(worlds())
    shown = data.draw(edited(base))
    store = MemoryStore()
    tree = put_world(store, base)
    ours = edited_tree(store, store, tree, edits_between(base, shown))
    assert get_world(store, ours) == shown
    patch = patch_of(tree_changes(store, tree, ours), str(tmp_path))
    assert apply_patch(store, store, tree, "layer", patch).tree == ours


@settings(FEW, max_examples=20)
@given(data=st.data())
def test_stock_git_applies_the_patch_to_the_same_files(data: st.DataObject, tmp_path: Path) -> None:
    base = data.draw(worlds())
    assume(not any(map(leads_to_itself, base.items())))
    shown = data.draw(edited(base))
    patch = diff(base, shown, tmp_path)
    work = write_world(fresh(tmp_path / "work"), base)
    if patch:
        run("git", "apply", "--binary", "-", cwd=work, stdin=patch)
    assert read_world(work) == shown


def test_how_much_of_each_file_changed(tmp_path: Path) -> None:
    before = {b"f": text("1\n2\n"), b"bin": (0o100644, b"\0"), b"gone\xff": text("1\n"), b"mode": text("m\n")}
    after = {b"f": text("1\nx\ny\n"), b"bin": (0o100644, b"\0\0"), b"mode": text("m\n", 0o100755)}
    changes = [
        Changed(path, Version(*before[path]) if path in before else None, version)
        for path, version in edits_between(before, after).items()
    ]
    assert stat_of(changes, str(tmp_path)) == [
        (b"bin", None, None), (b"f", 2, 1), (b"gone\xff", 0, 1), (b"mode", 0, 0),
    ]  # fmt: skip


# Who writes meanwhile


def test_what_was_written_meanwhile_is_seen(mounted: Mounted) -> None:
    tree = mounted.open(put_world(mounted.store, {b"d/f": text("f"), b"g": text("g"), b"h": text("h")}))
    edit(tree, {b"d/f": text("f"), b"g": text("g")}, {b"d/f": text("1"), b"g": text("2")})
    upper = tree.upper
    assert upper is not None
    until_settled = still.look(upper)
    while not until_settled.settled:
        until_settled = still.look(upper)
    read_file(tree, b"d/f")
    tree.lookup(tree.root, b"h")
    assert still.look(upper).same_as(until_settled)
    opened = tree.open(tree.lookup(tree.root, b"g")[0], os.O_WRONLY)
    opened.write(0, b"3")
    opened.close()
    now = still.look(upper)
    assert now.written(until_settled) == {b"g"}
    assert not now.settled
    assert now.marks == until_settled.marks
    hide_file(tree, b"h")
    assert still.look(upper).marks != now.marks


@pytest.mark.parametrize(
    ("written", "concerned", "touching"),
    [
        ([b"a"], [b"b"], False),
        ([b"a"], [b"a"], True),
        ([b"a"], [b"a/b/c"], True),
        ([b"a/b/c"], [b"a"], True),
        ([b"a/b"], [b"a/c"], False),
        ([b"ab"], [b"a"], False),
        ([], [b"a"], False),
    ],
)
def test_whether_it_concerns_a_plan(written: list[bytes], concerned: list[bytes], touching: bool) -> None:
    assert still.touches(written, concerned) is touching


# Rebases, planned


@FEW
@given(data=st.data())
def test_onto_the_same_release_nothing_changes(data: st.DataObject, tmp_path: Path) -> None:
    base = data.draw(worlds())
    middle = data.draw(edited(base))
    shown = data.draw(edited(middle))
    patches = [("one.patch", diff(base, middle, tmp_path))]
    made = plan(MemoryStore(), tmp_path, base, base, shown, patches, middle)
    assert made.changes_nothing
    assert [layer.state for layer in made.layers] == ["same"]
    assert not made.conflicts


@FEW
@given(data=st.data())
def test_onto_any_release_what_is_planned_is_what_is_shown(data: st.DataObject, tmp_path: Path) -> None:
    old = data.draw(worlds())
    middle, new = data.draw(edited(old)), data.draw(edited(old))
    shown = data.draw(edited(middle))
    store = MemoryStore()
    made = plan(store, tmp_path, old, new, shown, [("p", diff(old, middle, tmp_path))], middle)
    upper = edits_between(middle, shown)
    for path in made.resets:
        upper.pop(path)
    upper.update(dict.fromkeys(made.whiteouts))
    for path, version in made.writes:
        upper[path] = Version(version.mode, store.read(version.oid)[1])
    lower = get_world(store, made.lower)
    result = {path: file for path, file in lower.items() if path not in upper}
    result |= {path: (file.mode, file.content) for path, file in upper.items() if file is not None}
    assert result == get_world(store, made.shown)
    for layer in made.layers:  # the rewritten patches make the layers
        if layer.patch is not None:
            assert apply_patch(store, store, put_world(store, new), "p", layer.patch).tree == layer.tree
    for conflict in made.conflicts:
        assert conflict.names or any(write.path.startswith(conflict.path.partition(b"/")[0]) for write in made.aside)


def test_a_clean_and_a_conflicting_edit(tmp_path: Path) -> None:
    old = {b"clean": text(changed()), b"clash": text(changed()), b"gone": text("1\n"), b"taken": text("a\n")}
    shown = {
        b"clean": text(changed((2, "mine\n"))),
        b"clash": text(changed((5, "mine\n"))),
        b"taken": text("b\n"),
        b"added": text("new\n"),
    }
    new = old | {b"clean": text(changed((18, "new\n"))), b"clash": text(changed((5, "new\n"))), b"taken": text("b\n")}
    store = MemoryStore()
    made = plan(store, tmp_path, old, new, shown)
    world = get_world(store, made.shown)
    assert world[b"clean"] == text(changed((2, "mine\n"), (18, "new\n")))
    assert b"<<<<<<< your edits\nmine\n=======\nnew\n>>>>>>> x 2.0\n" in world[b"clash"][1]
    assert has_markers(world[b"clash"][1])
    assert not has_markers(world[b"clean"][1])
    assert made.resets == (b"taken",)
    assert [write.path for write in made.writes] == [b"clash", b"clean"]
    aside = {write.path: store.read(write.version.oid)[1] for write in made.aside}
    assert aside == {
        b"clash.orig": changed().encode(),
        b"clash.ours": changed((5, "mine\n")).encode(),
        b"clash.theirs": changed((5, "new\n")).encode(),
    }


def test_patches_move_with_it(tmp_path: Path) -> None:
    old = {b"f": text(changed()), b"g": text(changed()), b"h": text("h\n")}
    one = old | {b"f": text(changed((3, "one\n")))}
    two = one | {b"h": text("two\n")}
    three = two | {b"g": text(changed((9, "three\n"))), b"f": text(changed((3, "one\n"), (15, "three\n")))}
    series = [
        ("one", diff(old, one, tmp_path)),
        ("two", diff(one, two, tmp_path)),
        ("three", diff(two, three, tmp_path)),
    ]
    new = old | {
        b"f": text("start\n" * 3 + changed((16, "new\n"))),
        b"h": text("two\n"),
        b"g": text(changed((9, "new\n"))),
    }
    store = MemoryStore()
    made = plan(store, tmp_path, old, new, three, series, three)
    assert [layer.state for layer in made.layers] == ["same", "empty", "edits"]
    assert [conflict.path for conflict in made.conflicts] == [b"f", b"g"]
    assert get_world(store, made.lower)[b"f"] == text("start\n" * 3 + changed((3, "one\n"), (16, "new\n")))
    aside = {write.path: store.read(write.version.oid)[1].decode() for write in made.aside}
    assert aside[b"g.ours"] == changed((9, "three\n"))
    assert aside[b"g.orig"] == changed()
    assert aside[b"f.orig"] == changed((3, "one\n"))


def test_a_patch_of_nothing_but_conflicting_files_is_no_patch_of_the_release(tmp_path: Path) -> None:
    old = {b"f": text(changed())}
    one = {b"f": text(changed((3, "one\n")))}
    two = {b"f": text(changed((3, "one\n"), (15, "two\n")))}
    series = [("one", diff(old, one, tmp_path)), ("two", diff(one, two, tmp_path))]
    made = plan(MemoryStore(), tmp_path, old, {b"f": text(changed((3, "new\n")))}, two, series, two)
    assert [(layer.state, layer.patch) for layer in made.layers] == [("edits", None), ("edits", None)]
    assert [conflict.path for conflict in made.conflicts] == [b"f"]


def test_what_a_patch_and_the_release_have_moved_to_two_names_is_told(tmp_path: Path) -> None:
    old, one = {b"a": text(changed()), b"k": text("k\n")}, {b"b": text(changed()), b"k": text("K\n")}
    new = {b"c": text(changed()), b"k": text("k\n")}
    store = MemoryStore()
    made = plan(store, tmp_path, old, new, one, [("one", diff(old, one, tmp_path))], one)
    assert [(conflict.path, conflict.names) for conflict in made.conflicts] == [(b"a", (b"b", b"c"))]
    assert get_world(store, made.shown) == {b"b": text(changed()), b"c": text(changed()), b"k": text("K\n")}
    assert [layer.state for layer in made.layers] == ["split"]
    assert get_world(store, made.lower) == {b"c": text(changed()), b"k": text("K\n")}
    assert not made.aside


# Rebases, carried out


class Mounted:
    """An overlay on trees of a store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path / "store")
        self.uppers = Path(self.store.directory("uppers/w"))
        (self.uppers / "e").mkdir()
        self.cache = path / "cache"
        self.cache.mkdir()
        self.tree: OverlayTree | None = None

    def lower(self, tree: bytes) -> GitLower:
        space = TreeSpace(self.store, b"pypi:x==1", 1_600_000_000_000_000_000)
        return GitLower(space, tree, owner=US, cache_dir=str(self.cache))

    def open(self, tree: bytes) -> OverlayTree:
        fd = os.open(self.uppers / "e", os.O_RDONLY)
        self.tree = OverlayTree(self.lower(tree), fd, NodeTable(), entry=b"e", source=b"s")
        os.close(fd)
        return self.tree

    def close(self) -> None:
        if self.tree is not None:
            self.tree.close()
            self.tree = None

    def content(self, oid: bytes) -> bytes:
        return self.store.read(oid)[1]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    old = os.umask(0)
    made = Mounted(tmp_path)
    yield made
    made.close()
    assert fsck(made.store) == []
    made.store.close()
    os.umask(old)


def shown_world(tree: OverlayTree) -> World:
    """All files that the overlay shows."""
    found: World = {}
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        node = tree.root
        for name in directory.split(b"/") if directory else ():
            node = tree.lookup(node, name)[0]  # type: ignore[assignment]
        for entry in tree.entries(node):
            path = directory + b"/" + entry.name if directory else entry.name
            if entry.kind == stat.S_IFDIR:
                waiting.append(path)
            else:
                file = read_file(tree, path)
                assert file is not None
                found[path] = (file.mode, file.content)
    return found


def edit(tree: OverlayTree, before: World, after: World) -> None:
    """Make the overlay show *after*."""
    changes = edits_between(before, after)
    for path, file in changes.items():
        if file is None:
            hide_file(tree, path)
    for path, file in changes.items():
        if file is not None:
            done(show_file(tree, path, file, US))


def test_a_rebase_live_and_taken_back(mounted: Mounted, tmp_path: Path) -> None:
    store = mounted.store
    old = {b"d/f": text(changed()), b"d/g": text("g\n"), b"k/x": text("x\n"), b"k/y": text("y\n"), b"z": text("z\n")}
    new = {
        b"d/f": text(changed((18, "new\n"))),
        b"d/g": text("G\n"),
        b"k/x": text("x2\n"),
        b"k/w": text("w\n"),
        b"z": text("Z\n"),
    }
    shown = {
        b"d/f": text(changed((2, "mine\n"))),
        b"d/g": text("mine\n"),
        b"moved/x": text("x\n"),
        b"moved/y": text("y\n"),
        b"z": text("z\n"),
    }
    tree = mounted.open(put_world(store, old))
    tree.rename(tree.root, b"k", tree.root, b"moved", 0)
    edit(tree, {b"d/f": old[b"d/f"], b"d/g": old[b"d/g"]}, {path: shown[path] for path in (b"d/f", b"d/g")})
    node, _ = tree.lookup(tree.root, b"moved")
    tree.setxattr(node, b"user.mine", b"yes")
    assert shown_world(tree) == shown
    upper = tree._nodes.upper
    assert upper is not None
    made = plan(store, tmp_path, old, new, shown)
    rebasejournal.begin(store, Rebase("w-e", "pypi:x==1", "pypi:x==2", "started"), upper)
    with pytest.raises(ClivefsError, match="under way"):
        rebasejournal.begin(store, Rebase("w-e", "pypi:x==1", "pypi:x==2", "started"), upper)
    tree.replace_lower(mounted.lower(made.lower))
    done(carry_out(tree, made, store, US), store)
    aside = {write.path: (write.version.mode, mounted.content(write.version.oid)) for write in made.aside}
    assert shown_world(tree) == get_world(store, made.shown) | aside
    assert [conflict.path for conflict in made.conflicts] == [b"d/g"]
    done(carry_out(tree, made, store, US), store)  # once more harmlessly
    assert shown_world(tree) == get_world(store, made.shown) | aside
    # Back.
    mounted.close()
    saved = store.get_ref(rebasejournal.ref_name("w-e"))
    assert saved is not None
    fd = os.open(mounted.uppers, os.O_RDONLY)
    restore_upper(fd, b"e", store, saved)
    os.close(fd)
    rebasejournal.end(store, "w-e")
    again = mounted.open(put_world(store, old))
    assert shown_world(again) == shown
    assert again.getxattr(again.lookup(again.root, b"moved")[0], b"user.mine") == b"yes"
    assert {change.path: change.what for change in again.changes()} == {
        b"d/f": "modified",
        b"d/g": "modified",
        b"k": "deleted",
        b"moved": "added",
        b"moved/x": "added",
        b"moved/y": "added",
    }
    assert rebasejournal.load(store, "w-e") is None


def test_an_upper_comes_back_exactly(mounted: Mounted) -> None:
    tree = mounted.open(put_world(mounted.store, {b"low": text("low"), b"d/e": text("e")}))
    _, _, opened = tree.create(tree.root, b"big", 0o604, os.O_WRONLY, US)
    opened.write(0, b"x" * (3 << 20))
    opened.close()
    tree.link(tree.lookup(tree.root, b"big")[0], tree.root, b"\xff linked")
    tree.symlink(tree.root, b"link", b"nowhere\xff", US)
    tree.mkdir(tree.root, b"empty", 0o500, US)
    tree.mknod(tree.root, b"fifo", stat.S_IFIFO | 0o640, 0, US)
    tree.unlink(tree.root, b"low")
    tree.mkdir(tree.root, b"opaque", 0o755, US)
    copied = tree.lookup(tree.lookup(tree.root, b"d")[0], b"e")[0]
    tree.open(copied, os.O_RDWR).close()
    before, numbers = facts_below(mounted.uppers / "e" / "tree"), copied.nodeid
    upper = tree._nodes.upper
    assert upper is not None
    saved = save_upper(upper, mounted.store)
    marks = {(edit.kind, edit.path, edit.other) for edit in upper.log.marks.snapshot() if edit.path}
    tree.reset()
    mounted.close()
    fd = os.open(mounted.uppers, os.O_RDONLY)
    restore_upper(fd, b"e", mounted.store, saved)
    restore_upper(fd, b"e", mounted.store, saved)
    os.close(fd)
    assert facts_below(mounted.uppers / "e" / "tree") == before
    again = mounted.open(put_world(mounted.store, {b"low": text("low"), b"d/e": text("e")}))
    upper = again._nodes.upper
    assert isinstance(upper, Upper)
    assert {(edit.kind, edit.path, edit.other) for edit in upper.log.marks.snapshot() if edit.path} == marks
    assert again.lookup(again.lookup(again.root, b"d")[0], b"e")[0].nodeid == numbers
    assert os.listdir(mounted.uppers / "e" / "work") == []
    with pytest.raises(FileNotFoundError):
        again.lookup(again.root, b"low")


def facts_below(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything of the files below *top* but inode numbers and change times."""
    found: dict[bytes, tuple[object, ...]] = {}
    for here, directories, names in os.walk(os.fsencode(top)):
        for name in [*directories, *names, b"."]:
            place = os.path.join(here, name)
            facts = os.lstat(place)
            content: object = None
            if stat.S_ISLNK(facts.st_mode):
                content = os.readlink(place)
            elif stat.S_ISREG(facts.st_mode):
                with open(place, "rb") as file:
                    content = file.read()
            found[os.path.relpath(place, os.fsencode(top))] = (
                facts.st_mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns, facts.st_nlink, content,
            )  # fmt: skip
    return found


def test_conflicts_are_solved_one_by_one(mounted: Mounted) -> None:
    tree = mounted.open(put_world(mounted.store, {b"f": text("1")}))
    upper = tree._nodes.upper
    assert upper is not None
    store = mounted.store
    rebasejournal.begin(store, Rebase("e", "a", "b", "started", patches=(PatchChange.of("p", b"hi", None),)), upper)
    rebase = Rebase("e", "a", "b", "unsolved", (Unsolved("f", "content", ("f.orig",)), Unsolved("g\udcff", "mode", ())))
    rebasejournal.update(store, rebase)
    assert rebasejournal.load(store, "e") == rebase
    with pytest.raises(ClivefsError, match="Unsolved are: f"):
        rebasejournal.solved(store, "e", "other")
    left = rebasejournal.solved(store, "e", "f")
    assert left is not None
    assert [conflict.path for conflict in left.conflicts] == ["g\udcff"]
    assert rebasejournal.solved(store, "e", "g\udcff") is None
    assert rebasejournal.load(store, "e") is None
    assert store.get_ref(rebasejournal.ref_name("e")) is None
