"""What comes of a fork: a merge, conflicts, and a daemon killed in between."""

from __future__ import annotations

import json
import os

import pytest
from faults import kill_at
from forkbench import DEAD, FILES, fork, listed, mount_checkout
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount


@pytest.fixture
def work(bench: Bench) -> Bench:
    mount_checkout(bench)
    return bench


def test_a_merge_brings_everything_back(work: Bench) -> None:
    made = fork(work)
    work.run(
        "sed -i 's/^line 3$/three/' src/text; rm src/other; mkdir -p a/b empty; echo n > a/b/new; chmod 600 a/b/new;"
        "ln -s target link; printf '\\0\\1' > 'sp ace\n\\'; echo o > x.o; echo r >> lib/thing/README",
        cwd=made,
    )
    work.run("sed -i 's/^line 25$/twentyfive/' src/text")
    would = json.loads(work.cli("merge", "try", "--dry-run", "--json", cwd=work.live).stdout)
    assert not (work.live / "a").exists()
    done = json.loads(work.cli("merge", "--json", cwd=made).stdout)
    assert done["changes"] == would["changes"]
    assert {each["path"]: each["status"] for each in done["changes"]} == {
        "a": "A",
        "a/b": "A",
        "a/b/new": "A",
        "empty": "A",
        "lib/thing/README": "M",
        "link": "A",
        "sp ace\n\\": "A",
        "src/other": "D",
        "src/text": "M",
    }
    text = (work.live / "src/text").read_text()
    assert "three\n" in text
    assert "twentyfive\n" in text
    assert (work.root / "a/b/new").stat().st_mode & 0o777 == 0o600
    assert (work.root / "empty").is_dir()
    assert os.readlink(work.root / "link") == "target"
    assert not (work.live / "x.o").exists()
    assert "changed nothing" in work.cli("merge", "try", cwd=work.live).stdout
    # What was merged is not merged again; what comes later is.
    (work.live / "a/b/new").write_text("live\n")
    (made / "src/later").write_text("later\n")
    again = json.loads(work.cli("merge", "try", "--json", cwd=work.live).stdout)
    assert again["changes"] == [{"path": "src/later", "status": "A"}]
    work.cli("undo", cwd=work.live)
    assert not (work.live / "src/later").exists()
    # A merge that was undone can be done once more.
    work.cli("merge", "try", cwd=work.live)
    assert (work.live / "src/later").exists()
    work.check_sound()


def test_conflicts_are_files_and_nothing_is_lost(work: Bench) -> None:
    made = fork(work)
    for place, word in ((made, "fork"), (work.live, "live")):
        work.run(f"sed -i 's/^line 3$/{word}/' src/text; printf '{word}\\0' > binary", cwd=place)
    (found,) = listed(work)["try"]["conflicts"]
    assert (found["with"], found["paths"]) == ("live", ["binary", "src/text"])
    (work.live / "src/text.orig").write_text("mine\n")
    done = work.cli("merge", "try", "--json", cwd=work.live, check=False)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    beside = {each["path"]: each["aside"] for each in result["conflicts"]}
    assert beside["src/text"] == ["src/text.1.orig", "src/text.1.ours", "src/text.1.theirs"]
    assert (work.live / "src/text.orig").read_text() == "mine\n"
    assert "<<<<<<< live\nlive\n=======\nfork\n>>>>>>> try\n" in (work.live / "src/text").read_text()
    assert "fork\n" in (work.live / "src/text.1.theirs").read_text()
    assert (work.live / "binary.theirs").read_bytes() == b"fork\0"
    assert (work.live / "binary").read_bytes() == b"live\0"
    assert "fork\n" in (made / "src/text").read_text()
    work.check_sound()


def test_what_is_not_written_to_is_left_alone_and_nothing_to_undo(bench: Bench) -> None:
    write_files(bench.root, {"a": "a\n"})
    bench.write_toml('[workspace]\nname = "shop"\nwrite = "none"\n')
    bench.mount()
    (fork(bench) / "a").write_text("b\n")
    done = bench.cli("merge", "try", cwd=bench.live, check=False)
    assert done.returncode == 1
    assert done.stdout == "nothing of try was merged\n"
    assert done.stderr == "left alone: a: the workspace's directory is not written to\n"
    assert (bench.live / "a").read_text() == "a\n"
    bench.check_sound()


def test_an_ignored_file_is_in_the_way_of_nothing_silently(work: Bench) -> None:
    made = fork(work)
    (made / ".gitignore").write_text("node_modules\n")
    (made / "notes.o").write_text("fork\n")
    (work.live / "notes.o").write_text("mine, not recorded\n")
    done = work.cli("merge", "try", cwd=work.live, check=False)
    assert done.returncode == 1
    assert "in the way" in done.stderr
    assert (work.live / "notes.o").read_text() == "mine, not recorded\n"
    assert (work.live / ".gitignore").read_text() == FILES[".gitignore"]
    work.check_sound()


def test_forks_conflict_with_each_other(work: Bench) -> None:
    one, two = fork(work, "one"), fork(work, "two")
    (one / "src/other").write_text("one\n")
    (two / "src/other").write_text("two\n")
    (two / "main.c").write_text("two\n")
    found = listed(work)
    assert found["one"]["conflicts"] == [{"with": "fork:two", "paths": ["src/other"]}]
    assert found["two"]["conflicts"] == [{"with": "fork:one", "paths": ["src/other"]}]
    assert (found["one"]["files"], found["two"]["files"]) == (1, 2)
    assert "+two" in work.cli("fork", "--diff", "two", cwd=work.live).stdout
    work.check_sound()


def test_what_is_told_of_a_fork_whose_merge_was_undone(work: Bench) -> None:
    path = fork(work)
    (path / "src/text").write_text("of the fork\n")
    work.cli("merge", "try", cwd=work.live)
    assert listed(work)["try"]["files"] == 0
    work.cli("undo", cwd=work.live)
    (work.live / "src/text").write_text("of the live view\n")
    assert listed(work)["try"]["files"] == 1
    assert listed(work)["try"]["conflicts"] == [{"with": "live", "paths": ["src/text"]}]
    shown = json.loads(work.cli("fork", "show", "try", "--json", cwd=work.live).stdout)
    assert shown["changes"] == [{"path": "src/text", "status": "M"}]
    work.check_sound()


@pytest.mark.parametrize("point", ["fork.dropped", "merge.applied", "apply.recorded", "run.applied"])
def test_killed_while_a_fork_comes_back(bench: Bench, point: str) -> None:
    mount_checkout(bench, env=kill_at(bench.base / "fault", point))
    made = fork(bench)
    write_files(made, {f"many/{number}": f"{number}\n" for number in range(50)})
    (made / "main.c").write_text("forked\n")
    words = {
        "fork.dropped": ["fork", "--drop", "try"],
        "run.applied": ["run", "--fork", "--", "sh", "-c", "echo r > r"],
    }
    bench.cli(*words.get(point, ["merge", "try"]), cwd=bench.live, check=False)
    until(lambda: not bench.daemons(), "the end of the daemon")
    bench.mount()
    if point == "fork.dropped":
        assert listed(bench) == {}
        until(lambda: not list((bench.store / "uppers").glob("*/dropped-*")), "what was dropped to go")
    elif point == "run.applied":
        assert (bench.live / "r").read_text() == "r\n"
    else:
        # All of it or nothing; once more brings what is missing.
        if point == "apply.recorded":
            assert not (bench.live / "many").exists()
            assert (bench.live / "main.c").read_text() == FILES["main.c"]
        for _ in range(2):
            if point != "apply.recorded":
                assert (bench.live / "main.c").read_text() == "forked\n"
                assert all((bench.live / f"many/{number}").read_text() == f"{number}\n" for number in range(50))
            bench.cli("merge", "try", cwd=bench.live)
            point = "merged"
        assert (made / "main.c").read_text() == "forked\n"
    bench.check_sound(allowed=DEAD)
