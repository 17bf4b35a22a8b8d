"""Forks by hand: real tools in real forks of a real mount."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import kill_at
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount

DEAD = r"clearing the dead mount|applier_process|Traceback|^ +main\(\)|flush\(\)|BrokenPipeError"
"""In the log of a daemon that was killed: the applier finds nobody to answer."""

FILES: dict[str, str | bytes] = {
    ".gitignore": "node_modules\n__pycache__/\n*.o\nprog\n",
    "Makefile": "prog: main.o\n\tcc -o prog main.o\nmain.o: main.c\n\tcc -c main.c\n",
    "main.c": "int main(void) { return 0; }\n",
    "src/text": "".join(f"line {number}\n" for number in range(30)),
    "src/other": "other\n",
}


@pytest.fixture
def work(bench: Bench) -> Bench:
    """A mounted workspace: a checkout with ignored files, and `lib/thing` from a git ref."""
    bench.repository("thing", {"README": "hello\n", "src/a.c": "int a;\n"})
    write_files(bench.root, FILES)
    bench.write_toml('[workspace]\nname = "shop"\n\n[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n')
    bench.git("init", "-q", "-b", "main", cwd=bench.root)
    (bench.root / ".git/info/exclude").write_text("/lib/\n")
    bench.git("add", "-A", cwd=bench.root)
    bench.git("commit", "-q", "-m", "first", cwd=bench.root)
    write_files(
        bench.root, {"node_modules/m/index.js": "module\n", "node_modules/top.js": "top\n", "main.o": "stale\n"}
    )
    os.utime(bench.root / "main.o", (1_000_000_000, 1_000_000_000))
    bench.mount()
    return bench


def fork(bench: Bench, name: str = "try", *args: str) -> Path:
    """Make a fork; where it is."""
    result = json.loads(bench.cli("fork", name, *args, "--json", cwd=bench.live).stdout)
    path = Path(result["path"])
    assert path == bench.live / ".clive/forks" / name
    return path


def listed(bench: Bench) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(bench.cli("fork", "--list", "--json", cwd=bench.live).stdout)}


def test_a_fork_stands_still_and_survives(work: Bench) -> None:
    made = fork(work)
    (made / "main.c").write_text("forked\n")
    (made / "new").mkdir()
    (work.live / "main.c").write_text("live\n")
    (work.live / "src/other").unlink()
    (work.live / "lib/thing/README").write_text("live\n")

    def check() -> None:
        assert (made / "main.c").read_text() == "forked\n"
        assert (made / "src/other").read_text() == "other\n"
        assert (made / "lib/thing/README").read_text() == "hello\n"
        assert (made / "new").is_dir()
        assert (work.live / "main.c").read_text() == "live\n"

    check()
    work.unmount()
    work.mount()
    check()
    os.kill(work.daemon_pid(), signal.SIGKILL)
    until(lambda: not work.daemons(), "the end of the daemon")
    work.mount()
    check()
    assert listed(work)["try"]["files"] == 1
    work.check_sound(allowed=DEAD)


def test_a_fork_of_the_past(work: Bench) -> None:
    point = json.loads(work.cli("snapshot", "--json", cwd=work.live).stdout)["id"]
    (work.live / "main.c").write_text("later\n")
    old = fork(work, "old", "--at", point[:12])
    assert (old / "main.c").read_text() == FILES["main.c"]
    assert (fork(work, "present") / "main.c").read_text() == "later\n"
    work.check_sound()


def test_the_directory_of_forks_is_not_changed_by_hand(work: Bench) -> None:
    made = fork(work)
    top = made.parent
    for change in (
        lambda: (top / "x").mkdir(),
        lambda: (top / "x").write_text(""),
        lambda: made.rmdir(),
        lambda: made.rename(top / "y"),
        lambda: (work.live / ".clive/x").mkdir(),
        lambda: top.rename(work.live / ".clive/y"),
        lambda: top.rmdir(),
        lambda: (made / ".clive").mkdir(),
        lambda: (made / "src").rename(made / ".clive"),
    ):
        with pytest.raises(PermissionError):
            change()
    assert not (made / ".clive").exists()
    assert os.listdir(top) == ["try"]
    work.cli("fork", "--drop", "try", cwd=work.live)
    assert os.listdir(top) == []
    assert not list((work.store / "uppers").glob("*/fork-*"))
    work.check_sound()


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "latest", "show", "list", "-x", "a.lock", "ü", "x" * 65])
def test_what_a_fork_cannot_be_called(work: Bench, name: str) -> None:
    done = work.cli("fork", "--", name, cwd=work.live, check=False)
    assert done.returncode in (1, 2)
    assert "fork" in done.stderr
    assert listed(work) == {}


def test_make_builds_only_what_it_must(work: Bench) -> None:
    work.run(["make"])
    made = fork(work)
    assert "up to date" in work.run(["make"], cwd=made).stdout
    (made / "main.c").write_text("int main(void) { return 3; }\n")
    work.run(["make"], cwd=made)
    assert work.run([made / "prog"], check=False).returncode == 3
    assert work.run([work.live / "prog"], check=False).returncode == 0
    work.check_sound()


def test_ignored_files_come_along_and_stay_as_they_were(work: Bench) -> None:
    made = fork(work)
    assert (made / "node_modules/m/index.js").read_text() == "module\n"
    live = work.live / "node_modules"
    (live / "top.js").write_text("changed\n")
    (live / "new.js").write_text("new\n")
    work.run("mv node_modules/m node_modules/moved; rm node_modules/moved/index.js; echo x > other.o")
    assert sorted(os.listdir(made / "node_modules")) == ["m", "top.js"]
    assert (made / "node_modules/top.js").read_text() == "top\n"
    assert (made / "node_modules/m/index.js").read_text() == "module\n"
    (made / "node_modules/top.js").write_text("fork\n")
    assert (live / "top.js").read_text() == "changed\n"
    work.unmount()
    work.mount()
    assert (made / "node_modules/m/index.js").read_text() == "module\n"
    assert not (made / "other.o").exists()
    # Outside edits of what nobody has changed through the mount do show.
    (work.root / "main.o").write_text("outside edit\n")
    until(lambda: (made / "main.o").read_text() == "outside edit\n", "the outside edit in the fork")
    work.check_sound()


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


# git


def test_a_link_to_a_recorded_file_is_one_in_its_points(work: Bench) -> None:
    work.cli("snapshot", cwd=work.live)
    os.link(work.live / "src/text", work.live / "src/link")
    work.cli("snapshot", cwd=work.live)
    (session,) = (work.live / ".clive/sessions").iterdir()
    text, link = (os.stat(session / "latest/src" / name) for name in ("text", "link"))
    assert text.st_ino == link.st_ino
    assert text.st_nlink == link.st_nlink == 2
    work.check_sound()


def test_forks_may_come_and_go_while_they_are_listed(work: Bench) -> None:
    script = "for i in 1 2 3 4 5 6; do clivefs fork n$i > /dev/null; clivefs fork --drop n$i > /dev/null; done"
    command = f'clivefs() {{ {sys.executable} -m clivefs.cli "$@"; }}; {script}'
    others = subprocess.Popen(["bash", "-euc", command], cwd=work.live, env=work.environment)
    while others.poll() is None:
        listed(work)
    assert others.returncode == 0
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


def test_git_works_in_a_fork_and_is_clean(work: Bench) -> None:
    work.run("echo staged > st; git add st; echo more >> main.c")
    live = work.git("status", "--porcelain")
    made = fork(work)
    assert work.git("status", "--porcelain", cwd=made) == live
    assert work.git("status", "--porcelain", cwd=made / "lib/thing") == ""
    for place in (made, made / "lib/thing"):
        work.run("echo fork > by-fork; git add by-fork; git commit -qm by-fork; git checkout -qb topic", cwd=place)
        work.run("echo fork >> by-fork; git commit -qm topic by-fork", cwd=place)
        assert work.git("log", "--format=%s", cwd=place).split() == ["topic", "by-fork", "first"]
    for place in (work.live, work.live / "lib/thing"):
        assert work.git("log", "--format=%s", "--all", cwd=place).split() == ["first"]
        assert work.git("branch", "--format=%(refname:short)", cwd=place).split() == ["main"]
    assert work.git("status", "--porcelain") == live
    assert work.git("status", "--porcelain", cwd=made) == " M main.c\n"
    dropped = json.loads(work.cli("fork", "--drop", "try", "--json", cwd=work.live).stdout)
    kept = {(each["entry"], each["ref"]): each for each in dropped["commits"]}
    for entry in ("", "lib/thing"):
        found = kept[entry, "refs/clive/forks/try/topic"]
        log = work.git(f"--git-dir={found['repository']}", "log", "--format=%s", found["commit"])
        assert log.split() == ["topic", "by-fork", "first"]
    work.git("merge", "-q", "refs/clive/forks/try/topic", cwd=work.live / "lib/thing")
    assert (work.live / "lib/thing/by-fork").read_text() == "fork\nfork\n"
    work.check_sound()


def test_what_a_fork_borrows_outlives_a_gc_of_the_source(work: Bench) -> None:
    made = fork(work)
    keeping = work.store / "repositories"
    until(lambda: any(each.stat().st_size for each in keeping.glob("*.git/packed-refs")), "the source to be kept")
    alternates = next((work.store / "uppers").glob("*/fork-*/git/0/objects/info/alternates"))
    until(lambda: len(alternates.read_text().splitlines()) == 2, "the fork to borrow from what is kept")
    work.run(
        "git commit -q --amend -m other; git reflog expire --expire=now --all; git gc -q --prune=now", cwd=work.root
    )
    assert work.git("log", "--format=%s", cwd=made).split() == ["first"]
    assert work.git("fsck", "--no-dangling", cwd=made) == ""
    work.check_sound()


# Transactions


def run_fork(bench: Bench, *words: object, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    return bench.cli("run", "--fork", *words, check=check, cwd=more.pop("cwd", bench.live), **more)


def test_a_command_commits_all_or_nothing(work: Bench) -> None:
    run_fork(work, "--", "sh", "-c", "echo a > a; rm other; test $(basename $PWD) = src", cwd=work.live / "src")
    assert (work.root / "src/a").read_text() == "a\n"
    assert not (work.root / "src/other").exists()
    failed = run_fork(work, "--", "sh", "-c", "echo b > b; exit 7", check=False)
    assert failed.returncode == 7
    dry = run_fork(work, "--dry-run", "--", "sh", "-c", "echo b > b")
    assert "+b" in dry.stdout
    assert not (work.live / "b").exists()
    assert run_fork(work, "--", "no-such-command", check=False).returncode == 125
    assert run_fork(work, "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    assert work.cli("run", "--", "sh", "-c", "echo live > by-live; exit 4", cwd=work.live, check=False).returncode == 4
    assert (work.live / "by-live").exists()
    assert listed(work) == {}
    assert "run: sh -c" in work.cli("log", cwd=work.live).stdout
    work.cli("undo", "2", cwd=work.live)
    assert (work.live / "src/other").exists()
    work.check_sound()


def test_the_second_of_two_who_wrote_the_same_is_refused(work: Bench) -> None:
    first = "echo first > src/other; echo f > first"
    second = f"{sys.executable} -m clivefs.cli run --fork -- sh -c '{first}' && echo second > src/other && echo s > s"
    done = run_fork(
        work,
        "--name",
        "second",
        "--",
        "sh",
        "-c",
        f"cd {work.live} && "
        + second.replace("&& echo second", f"&& cd {work.live}/.clive/forks/second && echo second"),
        check=False,
    )
    assert done.returncode == 125, done.stderr
    assert "src/other" in done.stderr
    assert (work.live / "src/other").read_text() == "first\n"
    assert not (work.live / "s").exists()
    kept = work.live / ".clive/forks/second"
    assert (kept / "src/other").read_text() == "second\n"
    assert listed(work)["second"]["kept"]
    merged = work.cli("merge", "second", cwd=work.live, check=False)
    assert merged.returncode == 1
    assert (work.live / "s").read_text() == "s\n"
    work.check_sound()


def test_others_never_see_half_of_a_transaction(work: Bench) -> None:
    script = "; ".join(f"echo new > file{number}" for number in range(200))
    names = [work.live / f"file{number}" for number in range(200)]
    runner = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "run", "--fork", "--", "sh", "-c", script],
        cwd=work.live,
        env=work.environment,
    )
    seen: set[int] = set()
    while runner.poll() is None:
        seen.add(sum(name.startswith("file") for name in os.listdir(work.live)))
    assert runner.returncode == 0
    assert all(name.exists() for name in names)
    assert seen <= {0, 200}
    work.check_sound()


HAS_BWRAP = subprocess.run(["sh", "-c", "command -v bwrap"], capture_output=True, check=False).returncode == 0


def test_a_sandbox_without_bubblewrap_says_how_to_get_it(work: Bench) -> None:
    done = run_fork(work, "--sandbox", "--", "true", check=False, env={"PATH": "/nonexistent"})
    assert done.returncode == 125
    assert "apt install bubblewrap" in done.stderr
    assert listed(work) == {}


@pytest.mark.skipif(not HAS_BWRAP, reason="bubblewrap is not installed")
def test_a_sandboxed_command_writes_nowhere_else(work: Bench) -> None:
    outside = work.home / "escaped"
    script = (
        f"cat main.c > copy; ls src; cat missing; echo x > {outside}; echo x > {work.live}/escaped;"
        f" echo x > {work.root}/escaped; ls {work.store}/run/*.sock; echo t > /tmp/t && git commit -qm x --allow-empty;"
        " rm src/other; true"
    )
    run_fork(work, "--name", "boxed", "--sandbox", "--", "sh", "-c", script)
    assert (work.live / "copy").read_text() == FILES["main.c"]
    for escaped in (outside, work.live / "escaped", work.root / "escaped"):
        assert not escaped.exists()
    audit = json.loads(work.cli("fork", "show", "boxed", "--audit", "--json", cwd=work.live).stdout)
    assert "main.c" in audit["read"]
    assert "src" in audit["listed"]
    assert "missing" in audit["missing"]
    assert "copy" in audit["written"]
    assert audit["removed"] == ["src/other"]
    assert audit["status"] == 0
    assert listed(work) == {}
    work.cli("fork", "--drop", "boxed", cwd=work.live)
    assert work.cli("fork", "show", "boxed", "--audit", cwd=work.live, check=False).returncode == 1
    work.check_sound()


# Many


def test_forks_build_side_by_side(work: Bench) -> None:
    forks = [fork(work, f"n{number}") for number in range(10)]
    builds = [
        subprocess.Popen(
            ["sh", "-c", f"echo 'int main(void) {{ return {number + 1}; }}' > main.c && make -s && ./prog"],
            cwd=made,
            env=work.environment,
        )
        for number, made in enumerate(forks)
    ]
    work.run("for i in $(seq 50); do echo $i > src/other; done; make -s; ./prog")
    assert [each.wait(120) for each in builds] == list(range(1, 11))
    assert all((made / "src/other").read_text() == "other\n" for made in forks)
    found = listed(work)
    assert all(each["files"] == 1 for each in found.values())
    assert all(len(each["conflicts"]) == 9 for each in found.values())
    told = work.cli("fork", "--list", cwd=work.live).stdout
    assert told.count(" conflicts with the forks ") == 10  # not one for each two
    for number in range(10):
        work.cli("fork", "--drop", f"n{number}", cwd=work.live)
    work.check_sound()


# Crashes


@pytest.mark.parametrize("point", ["fork.upper", "fork.made"])
def test_killed_while_a_fork_is_made(work: Bench, point: str) -> None:
    work.unmount()
    work.mount(env=kill_at(work.base / "fault", point))
    work.cli("fork", "try", cwd=work.live, check=False)
    until(lambda: not work.daemons(), "the end of the daemon")
    work.mount()
    if point == "fork.made":
        assert (work.live / ".clive/forks/try/main.c").read_text() == FILES["main.c"]
    else:
        assert listed(work) == {}
        until(lambda: not list((work.store / "uppers").glob("*/fork-*")), "the unfinished fork to go")
        fork(work)
    work.check_sound(allowed=DEAD)


@pytest.mark.parametrize("point", ["fork.dropped", "merge.applied", "apply.recorded", "run.applied"])
def test_killed_while_a_fork_comes_back(work: Bench, point: str) -> None:
    made = fork(work)
    write_files(made, {f"many/{number}": f"{number}\n" for number in range(50)})
    (made / "main.c").write_text("forked\n")
    work.unmount()
    work.mount(env=kill_at(work.base / "fault", point))
    words = {
        "fork.dropped": ["fork", "--drop", "try"],
        "run.applied": ["run", "--fork", "--", "sh", "-c", "echo r > r"],
    }
    work.cli(*words.get(point, ["merge", "try"]), cwd=work.live, check=False)
    until(lambda: not work.daemons(), "the end of the daemon")
    work.mount()
    if point == "fork.dropped":
        assert listed(work) == {}
        until(lambda: not list((work.store / "uppers").glob("*/dropped-*")), "what was dropped to go")
    elif point == "run.applied":
        assert (work.live / "r").read_text() == "r\n"
    else:
        # All of it or nothing; once more brings what is missing.
        if point == "apply.recorded":
            assert not (work.live / "many").exists()
            assert (work.live / "main.c").read_text() == FILES["main.c"]
        for _ in range(2):
            if point != "apply.recorded":
                assert (work.live / "main.c").read_text() == "forked\n"
                assert all((work.live / f"many/{number}").read_text() == f"{number}\n" for number in range(50))
            work.cli("merge", "try", cwd=work.live)
            point = "merged"
        assert (made / "main.c").read_text() == "forked\n"
    work.check_sound(allowed=DEAD)


def test_a_runner_that_is_killed_leaves_its_fork(work: Bench) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "run", "--fork", "--name", "left", "--", "sleep", "60"],
        cwd=work.live,
        env=work.environment,
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
    until(lambda: children.read_text().split(), "the command to run")
    child = int(children.read_text().split()[0])
    runner.kill()
    runner.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    assert listed(work)["left"]["command"] == "sleep 60"
    work.cli("fork", "--drop", "left", cwd=work.live)
    work.check_sound()


def test_a_terminated_runner_ends_its_command_and_drops(work: Bench) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "run", "--fork", "--", "sh", "-c", "echo x > x; exec sleep 60"],
        cwd=work.live,
        env=work.environment,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list((work.live / ".clive/forks").glob("*/x")), "the command to write", 20)
    runner.terminate()
    assert runner.wait(30) == 128 + signal.SIGTERM
    assert listed(work) == {}
    assert not (work.live / "x").exists()
    work.check_sound()
