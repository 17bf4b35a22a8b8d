"""git asks the mount which files have changed, and is told the truth, in the mount and outside."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, until

pytestmark = pytest.mark.mount


@pytest.fixture
def checkout(bench: Bench) -> Iterator[Bench]:
    """A mounted workspace that is a git repository, with the hook."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    for directory in range(3):
        (bench.root / f"d{directory}").mkdir()
        for number in range(5):
            (bench.root / f"d{directory}" / f"f{number}").write_text(f"{directory} {number}\n")
    (bench.root / ".gitignore").write_text("*.o\n")
    bench.git("init", "-q", "-b", "main", cwd=bench.root)
    bench.git("add", "-A", cwd=bench.root)
    bench.git("commit", "-q", "-m", "first", cwd=bench.root)
    bench.mount()
    bench.cli("snapshot")
    bench.cli("doctor", "--fix", "fsmonitor")
    yield bench
    bench.check_sound()


def status(bench: Bench, where: Path, *, asking: bool = True) -> list[str]:
    """What `git status` says; without *asking* git looks for itself, and writes nothing."""
    words = ["git"] + ([] if asking else ["--no-optional-locks", "-c", "core.fsmonitor="])
    return bench.run([*words, "status", "--porcelain", "-uall"], cwd=where).stdout.splitlines()


def hook(bench: Bench, token: str, where: Path | None = None) -> list[bytes]:
    path = bench.root / ".git" / "hooks" / "fsmonitor-clivefs"
    done = subprocess.run([path, "2", token], cwd=where or bench.root, capture_output=True, check=True)
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize("side", ["outside", "mount"])
def test_status_is_right(checkout: Bench, side: str) -> None:
    places = {"outside": checkout.root, "mount": checkout.live}
    asked = places[side]
    for place in places.values():
        assert status(checkout, asked) == []
        (place / "d0" / "f1").write_text("changed\n")
        assert status(checkout, asked) == [" M d0/f1"]
        (place / "d1" / "f2").unlink()
        (place / "d1" / "new").write_text("new\n")
        (place / "d1" / "new.o").write_text("ignored\n")
        assert status(checkout, asked) == [" M d0/f1", " D d1/f2", "?? d1/new"]
        (place / "d2").rename(place / "moved")
        expected = status(checkout, asked)
        assert len(expected) == 13
        until(lambda: status(checkout, asked, asking=False) == expected, f"{expected} by git's own look")  # noqa: B023
        checkout.git("stash", "-q", "-u", cwd=asked)
        assert status(checkout, asked) == []
        checkout.git("stash", "drop", "-q", cwd=asked)


def test_only_what_changed_is_named(checkout: Bench) -> None:
    token = hook(checkout, "none")[0].decode()
    assert hook(checkout, token) == [token.encode()]
    (checkout.root / "d0" / "f0").write_text("changed\n")
    assert hook(checkout, token)[1:] == [b"d0/f0"]
    checkout.cli("snapshot")
    new, *paths = hook(checkout, token)
    assert (new != token.encode(), paths) == (True, [b"d0/f0"])
    assert hook(checkout, new.decode()) == [new]
    (checkout.live / "d1" / "f1").write_text("changed\n")
    assert hook(checkout, new.decode())[1:] == [b"d1/f1"]
    asked = checkout.run(["bash", "-c", f"cat .clive/changed/{new.decode()}@d1 | tr '\\0' ' '"], cwd=checkout.live)
    assert asked.stdout.split()[1:] == ["f1"]


@pytest.mark.parametrize("token", ["none", "", "clivefs.x.1", "clivefs.0123456789abcdef.3", "1700000000000000000"])
def test_a_token_that_is_not_ours(checkout: Bench, token: str) -> None:
    assert hook(checkout, token)[1:] == [b"/"]
    done = checkout.cli("fsmonitor", "2", token)
    assert done.stdout.split("\0")[1:] == ["/", ""]


def test_the_command_gives_the_same_answers(checkout: Bench) -> None:
    token = hook(checkout, "none")[0].decode()
    (checkout.root / "d0" / "f0").write_text("changed\n")
    assert checkout.cli("fsmonitor", "2", token).stdout.split("\0")[1:] == ["d0/f0", ""]
    assert checkout.cli("fsmonitor", "1", token, check=False).returncode == 1
    checkout.git("config", "core.fsmonitor", "clivefs-for-this-test", cwd=checkout.root)


def test_nothing_is_known_of_a_fork(checkout: Bench) -> None:
    token = hook(checkout, "none")[0].decode()
    made = json.loads(checkout.cli("fork", "try", "--json").stdout)["path"]
    Path(made, "d0", "f0").write_text("changed\n")
    assert checkout.cli("fsmonitor", "2", token, cwd=Path(made)).stdout.split("\0")[1:] == ["/", ""]


def test_what_was_changed_back_is_looked_at_again(checkout: Bench) -> None:
    """Git has seen the change in between: two points, and two states, that are the same say nothing."""
    file, live = checkout.root / "d0" / "f0", checkout.live
    then = file.read_text()
    assert status(checkout, live) == []
    for turn in range(3):
        file.write_text(f"turn {turn}\n")
        checkout.cli("snapshot")
        assert status(checkout, live) == [" M d0/f0"]
        checkout.git("checkout", "-q", "d0/f0", cwd=live)
        assert status(checkout, live) == []
        checkout.cli("undo")
        assert file.read_text() == f"turn {turn}\n"
        assert status(checkout, live) == [" M d0/f0"]
        file.write_text(then)
        assert status(checkout, live) == []
    for _ in range(3):  # within one point
        (live / "new").write_text("new\n")
        (live / "d0/f1").write_text("edit\n")
        assert status(checkout, live) == [" M d0/f1", "?? new"]
        checkout.git("checkout", "-q", "d0/f1", cwd=live)
        (live / "new").unlink()
        assert status(checkout, live) == []


def test_untracked_files_that_undo_takes_away_are_gone(checkout: Bench) -> None:
    for turn in range(4):
        (checkout.live / f"new{turn}").write_text("new\n")
        assert status(checkout, checkout.live) == [f"?? new{turn}"]
        checkout.cli("undo")
        assert status(checkout, checkout.live) == []
        assert status(checkout, checkout.root) == []


def test_a_new_mount_knows_nothing_of_before(checkout: Bench) -> None:
    token = hook(checkout, hook(checkout, "none")[0].decode())[0].decode()
    checkout.unmount()
    checkout.mount()
    checkout.cli("snapshot")  # until then it does not know itself
    new, *paths = hook(checkout, token)
    assert paths == [b"/"]
    assert new != token.encode()
    assert hook(checkout, new.decode()) == [new]


def test_without_the_mount_git_looks_for_itself(checkout: Bench) -> None:
    assert status(checkout, checkout.root) == []
    checkout.cli("doctor", "--fix", "fsmonitor", cwd=checkout.live)  # as good as from outside
    checkout.unmount()
    (checkout.root / "d0" / "f1").write_text("changed\n")
    done = checkout.run(["git", "status", "--porcelain"], cwd=checkout.root)
    assert (done.stdout, done.stderr) == (" M d0/f1\n", "")
    assert checkout.cli("fsmonitor", "2", "x").stdout == "x\0/\0"
    checkout.mount()
    (checkout.root / "d0" / "f2").write_text("changed\n")
    assert status(checkout, checkout.root) == [" M d0/f1", " M d0/f2"]
    assert status(checkout, checkout.live) == [" M d0/f1", " M d0/f2"]


def test_outside_of_a_repository(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    done = bench.cli("doctor", "--fix", "fsmonitor", check=False)
    assert done.returncode == 1
    assert "git working tree" in done.stderr
    bench.unmount()
    done = bench.cli("doctor", "--fix", "fsmonitor", check=False)
    assert "not mounted" in done.stderr
    bench.check_sound()
