"""Forks by hand: real tools in real forks of a real mount."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from faults import kill_at
from forkbench import DEAD, FILES, fork, listed, mount_checkout
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount


@pytest.fixture
def work(bench: Bench) -> Bench:
    mount_checkout(bench)
    return bench


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


def test_what_a_fork_cannot_be_called(work: Bench) -> None:
    for name in ("", "UPPER", "a/b", "..", "latest", "show", "list", "-x", "a.lock", "ü", "x" * 65):
        done = work.cli("fork", "--", name, cwd=work.live, check=False)
        assert done.returncode in (1, 2), name
        assert "fork" in done.stderr, name
        assert os.listdir(work.live / ".clive/forks") == [], name
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


def test_forks_may_come_and_go_while_they_are_listed(work: Bench) -> None:
    script = "for i in 1 2 3 4 5 6; do clivefs fork n$i > /dev/null; clivefs fork --drop n$i > /dev/null; done"
    command = f'clivefs() {{ {sys.executable} -m clivefs.cli "$@"; }}; {script}'
    others = subprocess.Popen(["bash", "-euc", command], cwd=work.live, env=work.environment)
    while others.poll() is None:
        listed(work)
    assert others.returncode == 0
    work.check_sound()


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
    assert [each.wait(600) for each in builds] == list(range(1, 11))
    assert all((made / "src/other").read_text() == "other\n" for made in forks)
    found = listed(work)
    assert all(each["files"] == 1 for each in found.values())
    assert all(len(each["conflicts"]) == 9 for each in found.values())
    told = work.cli("fork", "--list", cwd=work.live).stdout
    assert told.count(" conflicts with the forks ") == 10  # not one for each two
    for number in range(10):
        work.cli("fork", "--drop", f"n{number}", cwd=work.live)
    work.check_sound()


@pytest.mark.parametrize("point", ["fork.upper", "fork.made"])
def test_killed_while_a_fork_is_made(bench: Bench, point: str) -> None:
    mount_checkout(bench, env=kill_at(bench.base / "fault", point))
    bench.cli("fork", "try", cwd=bench.live, check=False)
    until(lambda: not bench.daemons(), "the end of the daemon")
    bench.mount()
    if point == "fork.made":
        assert (bench.live / ".clive/forks/try/main.c").read_text() == FILES["main.c"]
    else:
        assert listed(bench) == {}
        until(lambda: not list((bench.store / "uppers").glob("*/fork-*")), "the unfinished fork to go")
        fork(bench)
    bench.check_sound(allowed=DEAD)


def test_a_link_to_a_recorded_file_is_one_in_its_points(work: Bench) -> None:
    work.cli("snapshot", cwd=work.live)
    os.link(work.live / "src/text", work.live / "src/link")
    work.cli("snapshot", cwd=work.live)
    (session,) = (work.live / ".clive/sessions").iterdir()
    text, link = (os.stat(session / "latest/src" / name) for name in ("text", "link"))
    assert text.st_ino == link.st_ino
    assert text.st_nlink == link.st_nlink == 2
    work.check_sound()


# git


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


def test_the_index_of_a_fork_is_made_when_git_asks_for_it(work: Bench) -> None:
    """Nobody has used git in the entry before: its index would take as long to make as the tree is large."""
    (work.live / "lib/thing/README").write_text("edited\n")
    made = fork(work)
    (gitdirs,) = work.store.glob("uppers/*/fork-*/git")
    assert len(list(gitdirs.glob("*.unbuilt"))) == 1
    assert not list(work.store.glob("uppers/*/lib*/git/index"))
    work.run("git commit -qam live; echo 'int b;' > src/a.c; git add src/a.c", cwd=work.live / "lib/thing")
    thing = made / "lib/thing"
    for _ in range(2):
        assert work.git("status", "--porcelain", cwd=thing) == " M README\n"
        assert list(gitdirs.glob("*.unbuilt")) == []
        work.unmount()
        work.mount()
    assert work.git("log", "--format=%s", cwd=thing) == "first\n"
    # Git has read nothing, as it was told what stat(2) tells.
    facts = work.git("ls-files", "--debug", "src/a.c", cwd=thing)
    st = os.stat(thing / "src/a.c")
    assert f"mtime: {int(st.st_mtime)}:" in facts
    assert f"size: {st.st_size}\t" in facts
    work.check_sound()


def test_git_in_a_fork_without_a_repository_leaves_the_live_view_alone(bench: Bench) -> None:
    write_files(bench.root, {"file": "committed\n"})
    bench.git("init", "-q", "-b", "main", cwd=bench.root)
    bench.git("add", "-A", cwd=bench.root)
    bench.git("commit", "-q", "-m", "first", cwd=bench.root)
    bench.write_toml('[workspace]\nname = "shop"\nwrite = "overlay"\n')
    bench.mount()
    (bench.live / "file").write_text("of the live view\n")
    made = fork(bench)
    done = bench.run("git reset --hard", cwd=made, check=False)
    assert done.returncode == 128
    assert "this fork has no repository of its own" in done.stderr
    assert (bench.live / "file").read_text() == "of the live view\n"
    (made / "file").write_text("of the fork\n")
    bench.cli("merge", "try", cwd=bench.live)
    assert (bench.live / "file").read_text() == "of the fork\n"
    assert bench.git("log", "--format=%s") == "first\n"
    bench.cli("fork", "--drop", "try", cwd=bench.live)
    bench.check_sound()


def test_submodules_are_working_trees_in_a_fork_too(bench: Bench) -> None:
    bench.repository("inner", {"i": "inner\n"})
    outer = bench.repository("outer", {"o": "outer\n"})
    add = ["git", "-c", "protocol.file.allow=always", "submodule", "add", "-q"]
    bench.run([*add, "../inner", "in"], cwd=outer)
    bench.git("commit", "-q", "-m", "with inner", cwd=outer)
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.git("init", "-q", "-b", "main", cwd=bench.root)
    bench.run([*add, "../outer", "lib/out"], cwd=bench.root)
    update = "git -c protocol.file.allow=always submodule update -q --init --recursive"
    bench.run(update, cwd=bench.root)
    bench.git("add", "-A", cwd=bench.root)
    bench.git("commit", "-q", "-m", "first", cwd=bench.root)
    bench.mount()
    made = fork(bench)
    for place in (made, made / "lib/out", made / "lib/out/in"):
        assert bench.git("status", "--porcelain", cwd=place) == ""
        assert bench.git("rev-parse", "--show-toplevel", cwd=place) == f"{place}\n"
    bench.run(f"{update}; git submodule status --recursive", cwd=made)
    (made / "lib/out/in/i").write_text("of the fork\n")
    bench.git("commit", "-qam", "by the fork", cwd=made / "lib/out/in")
    assert bench.git("status", "--porcelain", cwd=made) == " M lib/out\n"
    assert bench.git("status", "--porcelain", cwd=bench.live) == ""
    dropped = json.loads(bench.cli("fork", "--drop", "try", "--json", cwd=bench.live).stdout)
    (kept,) = dropped["commits"]
    assert kept["entry"] == "lib/out/in"
    log = bench.git(f"--git-dir={kept['repository']}", "log", "--format=%s", kept["ref"])
    assert log == "by the fork\nfirst\n"
    assert (bench.root / "lib/out/in/i").read_text() == "inner\n"
    bench.check_sound()


def test_a_repository_that_the_live_view_gets_later_is_not_the_forks(bench: Bench) -> None:
    write_files(bench.root, {"file": "committed\n"})
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    made = fork(bench)
    bench.run("git init -q -b main; git add -A; git commit -q -m first; echo live > file")
    for place in (made, made.parent):
        done = bench.run("git reset --hard", cwd=place, check=False)
        assert done.returncode == 128
        assert "this fork has no repository of its own" in done.stderr
    assert (bench.live / "file").read_text() == "live\n"
    assert os.listdir(made.parent) == ["try"]
    assert ".git" not in os.listdir(made)
    # It may get one.
    assert (
        bench.run("git init -q -b own; git add -A; git status --short", cwd=made).stdout == "A  Clive.toml\nA  file\n"
    )
    bench.cli("fork", "--drop", "try", cwd=bench.live)
    bench.check_sound()


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
