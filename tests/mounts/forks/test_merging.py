"""What a fork brings back, as a plan."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from clivefs.mounts.forks.merging import MergePlan, both_wrote, changes, conflicting, foretold, plan_merge
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.treemerge import Labels
from clivefs.mounts.points.compare import State
from clivefs.objects.memory import MemoryStore
from tests.mounts.points.pointworlds import File, directory, regular, special, symlink, write

LINES = [b"line %d\n" % number for number in range(20)]


def text(**changed: bytes) -> bytes:
    """The lines 0 to 19, some of them otherwise: `l3=b"..."`."""
    return b"".join(changed.get(f"l{number}", line) for number, line in enumerate(LINES))


class Merged:
    """Three states and the plan of their merge."""

    def __init__(
        self, scratch: Path, base: File, ours: File, theirs: File, taken: frozenset[bytes] = frozenset()
    ) -> None:
        self.store = MemoryStore()
        with self.store.batch() as batch:
            self.base, self.ours, self.theirs = (State(*write(batch, each)) for each in (base, ours, theirs))
        self.reader = JoinedObjects((self.store,), str(scratch))
        self.scratch = str(scratch)
        self.plan: MergePlan = plan_merge(
            self.reader,
            self.store,
            base=self.base,
            ours=self.ours,
            theirs=self.theirs,
            labels=Labels("base", "live", "try"),
            scratch=self.scratch,
            taken=taken.__contains__,
        )

    def puts(self) -> dict[bytes, tuple[int, bytes | None]]:
        """Mode and content of what is put, by path."""
        return {
            put.wanted.path: (put.wanted.mode, self.store.read(put.oid)[1] if put.oid is not None else None)
            for put in self.plan.puts
        }

    def both(self) -> list[bytes]:
        mine, others = (changes(self.reader, self.base, each) for each in (self.ours, self.theirs))
        return both_wrote(mine, others)

    def conflicting(self) -> list[bytes]:
        mine, others = (changes(self.reader, self.base, each) for each in (self.ours, self.theirs))
        found = conflicting(self.reader, mine, others, self.scratch)
        merged = {conflict.path for conflict, _ in self.plan.conflicts}
        told = foretold(self.reader, self.base, self.ours, self.theirs, (mine, others), self.scratch)
        assert set(told) == merged
        return found


def test_what_only_the_fork_changed_comes(tmp_path: Path) -> None:
    base = directory({b"a": regular(b"a"), b"gone": regular(b"x"), b"same": regular(b"s")})
    theirs = directory(
        {b"a": regular(b"b", 0o600), b"new": directory({b"x": regular(b"x", 0o755)}), b"same": regular(b"s")}
    )
    merged = Merged(tmp_path, base, base, theirs)
    assert merged.puts() == {
        b"a": (0o100600, b"b"),
        b"gone": (0, None),
        b"new": (0o40755, None),
        b"new/x": (0o100755, b"x"),
    }
    assert merged.plan.changes == ((b"a", "M"), (b"gone", "D"), (b"new", "A"), (b"new/x", "A"))
    assert not merged.plan.conflicts
    assert merged.both() == []


def test_both_changed_a_file_in_different_places(tmp_path: Path) -> None:
    merged = Merged(
        tmp_path,
        directory({b"f": regular(text())}),
        directory({b"f": regular(text(l2=b"ours\n"))}),
        directory({b"f": regular(text(l17=b"theirs\n"), 0o640)}),
    )
    assert merged.puts() == {b"f": (0o100640, text(l2=b"ours\n", l17=b"theirs\n"))}
    assert merged.both() == [b"f"]
    assert merged.conflicting() == []


def test_both_changed_the_same_lines(tmp_path: Path) -> None:
    merged = Merged(
        tmp_path,
        directory({b"f": regular(text())}),
        directory({b"f": regular(text(l2=b"ours\n"))}),
        directory({b"f": regular(text(l2=b"theirs\n"))}),
    )
    puts = merged.puts()
    assert puts.keys() == {b"f", b"f.orig", b"f.ours", b"f.theirs"}
    assert b"<<<<<<< live\nours\n=======\ntheirs\n>>>>>>> try\n" in (puts[b"f"][1] or b"")
    assert puts[b"f.orig"][1] == text()
    assert puts[b"f.theirs"][1] == text(l2=b"theirs\n")
    ((conflict, beside),) = merged.plan.conflicts
    assert conflict.path == b"f"
    assert beside == (b"f.orig", b"f.ours", b"f.theirs")
    assert merged.conflicting() == [b"f"]


def test_a_moved_file_that_the_other_side_changed_is_no_conflict(tmp_path: Path) -> None:
    base = directory({b"f": regular(text()), b"e": directory({})})
    moved = directory({b"d": directory({b"g": regular(text())})})
    edited = directory({b"f": regular(text(l2=b"edited\n")), b"e": directory({}, 0o700)})
    for ours, theirs in ((moved, edited), (edited, moved)):
        merged = Merged(tmp_path, base, ours, theirs)
        assert b"f" in merged.conflicting()  # as far as can be told without a merge
        assert not merged.plan.conflicts


def test_versions_of_a_conflict_take_nobodys_place(tmp_path: Path) -> None:
    merged = Merged(
        tmp_path,
        directory({b"f": regular(b"0\n")}),
        directory({b"f": regular(b"1\n")}),
        directory({b"f": regular(b"2\n")}),
        taken=frozenset({b"f.ours"}),  # an ignored file of the live view
    )
    assert merged.puts().keys() == {b"f", b"f.orig.1", b"f.ours.1", b"f.theirs.1"}


def test_the_fork_removed_what_the_live_view_changed(tmp_path: Path) -> None:
    merged = Merged(
        tmp_path,
        directory({b"f": regular(b"0\n")}),
        directory({b"f": regular(b"1\n")}),
        directory({}),
    )
    assert merged.puts().keys() == {b"f.orig", b"f.ours"}
    assert [each.path for each, _ in merged.plan.conflicts] == [b"f"]
    assert merged.both() == merged.conflicting() == [b"f"]


def test_what_git_does_not_hold_comes_too(tmp_path: Path) -> None:
    base = directory({b"f": regular(b"f"), b"old": directory({}), b"kept": directory({})})
    theirs = directory(
        {
            b"f": regular(b"f", 0o600, xattrs=((b"user.x", b"1"),)),
            b"empty": directory({}, 0o700),
            b"pipe": special(stat.S_IFIFO | 0o600),
            b"kept": directory({}),
        }
    )
    merged = Merged(tmp_path, base, base, theirs)
    assert merged.puts() == {
        b"f": (0o100600, b"f"),
        b"old": (0, None),
        b"empty": (0o40700, None),
        b"pipe": (stat.S_IFIFO | 0o600, None),
    }
    wanted = {put.wanted.path: put.wanted for put in merged.plan.puts}
    assert wanted[b"f"].xattrs == ((b"user.x", b"1"),)


def test_permissions_that_the_live_view_changed_stay(tmp_path: Path) -> None:
    merged = Merged(
        tmp_path,
        directory({b"f": regular(b"f", 0o644)}),
        directory({b"f": regular(b"f", 0o600)}),
        directory({b"f": regular(b"f", 0o664)}),
    )
    assert merged.puts() == {}


X = ((b"user.x", b"1"),)
Y = ((b"user.y", b"2"),)


def test_permissions_and_attributes_follow_a_file_that_the_other_side_moved(tmp_path: Path) -> None:
    base = directory({b"f": regular(text()), b"g": regular(b"g")})
    moved = directory({b"d": directory({b"new": regular(text())}), b"g": regular(b"g")})
    dressed = directory({b"f": regular(text(), 0o600, xattrs=X), b"g": regular(b"g")})
    merged = Merged(tmp_path, base, moved, dressed)
    assert merged.puts() == {b"d/new": (0o100600, text())}
    assert merged.plan.puts[0].wanted.xattrs == X
    assert merged.plan.changes == ((b"d/new", "M"),)
    assert not merged.plan.puts[0].wanted.is_new
    merged = Merged(tmp_path, base, dressed, moved)
    assert merged.puts() == {b"d": (0o40755, None), b"d/new": (0o100600, text()), b"f": (0, None)}
    assert {put.wanted.path: put.wanted.xattrs for put in merged.plan.puts}[b"d/new"] == X


def test_attributes_are_merged_one_by_one(tmp_path: Path) -> None:
    merged = Merged(
        tmp_path,
        directory({b"f": regular(text()), b"kept": regular(b"k"), b"d": directory({})}),
        directory({b"f": regular(text(l2=b"o\n"), xattrs=X), b"kept": regular(b"K"), b"d": directory({}, 0o700)}),
        directory(
            {b"f": regular(text(l17=b"t\n"), 0o600), b"kept": regular(b"k", 0o640), b"d": directory({}, xattrs=Y)}
        ),
    )
    assert merged.puts() == {
        b"f": (0o100600, text(l2=b"o\n", l17=b"t\n")),
        b"kept": (0o100640, b"K"),
        b"d": (0o40700, None),
    }
    assert {put.wanted.path: put.wanted.xattrs for put in merged.plan.puts} == {b"f": X, b"kept": (), b"d": Y}


def test_names_that_are_one_file_in_the_fork_are_to_be_one_file(tmp_path: Path) -> None:
    base = {b"a": regular(b"a"), b"b": regular(b"b", link=1), b"c": regular(b"b", link=1), b"d": regular(b"d")}
    theirs = {
        b"a": regular(b"a", link=7),
        b"also": regular(b"a", link=7),
        b"b": regular(b"B"),
        b"c": regular(b"b"),
        b"d": regular(b"d"),
    }
    merged = Merged(tmp_path, directory(base), directory(base), directory(theirs))
    wanted = {put.wanted.path: (put.wanted.link, put.wanted.had_links) for put in merged.plan.puts}
    assert {path: link for path, (link, _) in wanted.items()} == {b"a": 7, b"also": 7, b"b": 0}
    assert wanted[b"b"] == (0, True)
    assert merged.plan.changes == ((b"also", "A"), (b"b", "M"))
    live = directory({**base, b"a": regular(b"of the live view")})
    merged = Merged(tmp_path, directory(base), live, directory(theirs))
    assert merged.puts().keys() == {b"also", b"b"}


def test_two_new_names_of_one_file_are_told_also_early(tmp_path: Path) -> None:
    base = directory({b"a": regular(text())})
    merged = Merged(tmp_path, base, directory({b"c": regular(text())}), directory({b"b": regular(text())}))
    assert merged.puts() == {b"b": (0o100644, text())}
    ((conflict, beside),) = merged.plan.conflicts
    assert (conflict.path, conflict.why, beside) == (b"a", "renamed by both, to c and to b", ())
    assert merged.both() == [b"a"]
    merged.conflicting()  # what is told early is the same


@pytest.mark.parametrize(
    "ours, theirs, expected",
    [
        ({b"d": regular(b"file")}, {b"d": directory({b"x": regular(b"x")})}, [b"d", b"d/x"]),
        ({b"d": directory({b"x": regular(b"x")})}, {b"d": directory({b"y": regular(b"y")})}, []),
        ({b"l": symlink(b"one")}, {b"l": symlink(b"two")}, [b"l"]),
        ({b"same": regular(b"x")}, {b"same": regular(b"x")}, [b"same"]),
        ({b"p": special(stat.S_IFIFO | 0o600)}, {b"p": regular(b"x")}, [b"p"]),
    ],
)
def test_who_wrote_the_same(
    tmp_path: Path, ours: dict[bytes, File], theirs: dict[bytes, File], expected: list[bytes]
) -> None:
    merged = Merged(tmp_path, directory({}), directory(ours), directory(theirs))
    assert merged.both() == expected


def test_the_same_written_by_both_needs_nobody_to_merge_it(tmp_path: Path) -> None:
    base = {
        b"count": regular(b"0\n"),
        b"image": regular(b"\0old"),
        b"gone": regular(b"x"),
        b"d": directory({b"e": directory({})}),
    }
    both = directory({b"count": regular(b"1\n"), b"image": regular(b"\0new")})
    merged = Merged(tmp_path, directory(base), both, both)
    assert merged.both() == [b"count", b"gone", b"image"]
    assert merged.conflicting() == []
    assert not merged.plan.puts


def test_nothing_of_a_fork_that_changed_nothing(tmp_path: Path) -> None:
    base = directory({b"f": regular(b"0\n")})
    assert Merged(tmp_path, base, directory({b"g": regular(b"g")}), base).plan == MergePlan((), (), ())
