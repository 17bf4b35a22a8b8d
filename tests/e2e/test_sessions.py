"""Every save is a point, and every point shows the workspace as it was: recording as its users see it."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, until, write_files
from pastview import shown

from clivefs.daemon.noticing import QUIET_S
from clivefs.mounts.recording.recorder import DEFER_BYTES


def points(bench: Bench, *path: str, **more: Any) -> list[dict[str, Any]]:
    """The points of the workspace, newest first."""
    found = json.loads(bench.cli("log", "--json", *path, **more).stdout)
    assert isinstance(found, list)
    return found


def snapshot(bench: Bench) -> Path:
    """The barrier; the directory of the point."""
    name = json.loads(bench.cli("snapshot", "--json").stdout)["name"]
    return bench.live / ".clive" / "at" / name


def assert_recorded(bench: Bench) -> None:
    """The newest point shows what the live workspace shows."""
    past = snapshot(bench)
    live, then = shown(bench.live), shown(past)
    assert live.keys() == then.keys()
    assert {path: (live[path], then[path]) for path in live if live[path] != then[path]} == {}


def text_of(path: Path) -> str:
    """What a file says; nothing where there is none yet."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@pytest.fixture
def recorded(shop: Bench) -> Bench:
    """The workspace `shop`, of which the first point is there."""
    snapshot(shop)
    return shop


def test_the_first_point_has_everything(recorded: Bench) -> None:
    assert_recorded(recorded)
    (first,) = points(recorded)
    assert first["seq"] == 1
    recorded.check_sound()


def test_a_log_since_before_the_first_point_is_all_of_it(recorded: Bench) -> None:
    first = points(recorded)
    assert points(recorded, "--since", "-5w") == first
    assert points(recorded, "--since", "latest") == []
    assert recorded.cli("log", "--until", "-5w", check=False).returncode == 1
    assert recorded.cli("show", "-5w", check=False).returncode == 1


def test_two_saves_are_two_points_once_the_first_is_recorded(recorded: Bench) -> None:
    """Which takes a moment; how long is measured in `bench/`."""
    session = recorded.live / ".clive/sessions" / recorded.status()["workspaces"][0]["session"]
    file = recorded.live / "plain.txt"
    file.write_text("one\n")
    until(lambda: text_of(session / "latest/plain.txt") == "one\n", "the first point")
    file.write_text("two\n")
    past = snapshot(recorded)
    newest, before, *_ = points(recorded, "plain.txt")
    assert (past / "plain.txt").read_text() == "two\n"
    assert (recorded.live / ".clive/at" / before["name"] / "plain.txt").read_text() == "one\n"
    assert newest["paths"] == ["plain.txt"]
    assert newest["origin"] == "mount"
    recorded.check_sound()


def test_a_point_that_changes_nothing_is_the_doing_of_the_command(recorded: Bench) -> None:
    recorded.cli("snapshot", "-m", "before the migration")
    recorded.cli("session", "new", "two")
    recorded.unmount()
    recorded.mount()
    snapshot(recorded)
    mounted, two, migration, first = points(recorded)
    assert [each["origin"] for each in (mounted, two, migration)] == [
        "command:mount",
        "command:session",
        "command:snapshot",
    ]
    assert migration["message"] == "before the migration"
    assert first["origin"] == "outside"
    (recorded.live / "plain.txt").write_text("more\n")
    recorded.cli("snapshot", "-m", "after it")
    changed = next(each for each in points(recorded) if each["paths"])
    assert changed["origin"] == "mount"
    recorded.check_sound()


def test_a_large_file_that_is_read_aside_came_through_the_mount(recorded: Bench) -> None:
    (recorded.live / "large").write_bytes(b"x" * (DEFER_BYTES + 1))
    snapshot(recorded)
    (newest, *_) = points(recorded, "large")
    assert newest["origin"] == "mount"
    recorded.check_sound()


def test_a_burst_becomes_few_points(recorded: Bench) -> None:
    """Before each there is a moment without a change, so their number is bounded by how long the burst took."""
    began = time.monotonic()
    recorded.run("for i in $(seq 400); do echo $i > over/f$i; done")
    assert_recorded(recorded)
    took_s = time.monotonic() - began
    assert len(points(recorded)) < 5 + took_s / QUIET_S
    recorded.check_sound()


def test_a_point_is_made_without_anybody_asking(recorded: Bench) -> None:
    session = recorded.live / ".clive/sessions" / recorded.status()["workspaces"][0]["session"]
    (recorded.live / "plain.txt").write_text("said\n")
    until(lambda: text_of(session / "latest/plain.txt") == "said\n", "the point")


def test_hostile_names_and_kinds(recorded: Bench) -> None:
    for top in (recorded.live, recorded.live / "over", recorded.live / "lib/thing"):
        raw = os.fsencode(top)
        for name in (b"a\nb", b'quote"d', b"back\\slash", b"\xff\xfe\x80", "ü".encode(), b" space ", b"-n", b"x" * 255):
            Path(os.fsdecode(os.path.join(raw, name))).write_bytes(name)
        (top / "empty").mkdir()
        (top / "empty/deeper").mkdir()
        os.mkfifo(top / "pipe")
        os.symlink("nowhere/at/all", top / "dangling")
        os.symlink("/etc/passwd", top / "absolute")
        (top / "mode").write_text("m")
        (top / "mode").chmod(0o4711)
        (top / "closed").mkdir()
        (top / "closed").chmod(0o750)
        os.setxattr(top / "mode", "user.note", b"\0\1bytes")
        (top / "first").write_text("linked")
        os.link(top / "first", top / "second")
        deep = top
        for _ in range(30):
            deep = deep / ("d" * 60)
        subprocess.run(["mkdir", "-p", deep.relative_to(top)], cwd=top, check=True)
    assert_recorded(recorded)
    # and after more changes
    for top in (recorded.live, recorded.live / "over", recorded.live / "lib/thing"):
        (top / "second").write_text("changed through the other name")
        os.rename(top / "empty", top / "emptied")
        (top / "pipe").unlink()
        (top / "mode").chmod(0o644)
        os.removexattr(top / "mode", "user.note")
        os.rename(top / ("d" * 60), top / "shorter")
    assert_recorded(recorded)
    recorded.check_sound()


def test_editors_and_archives(recorded: Bench, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_files(tree, {f"pkg/d{n % 7}/f{n}.txt": f"{n}\n" * n for n in range(300)})
    subprocess.run(["tar", "-C", tree, "-cf", tmp_path / "t.tar", "pkg"], check=True)
    for place in (".", "over", "lib/thing"):
        recorded.run(f"tar -xf '{tmp_path}/t.tar'", cwd=recorded.live / place)
    assert_recorded(recorded)
    for place in (".", "over", "lib/thing"):
        command = "mv pkg kgp; cp -a kgp again; rm -rf kgp/d3; mkdir kgp/d3; echo > kgp/d3/new"
        recorded.run(command, cwd=recorded.live / place)
    assert_recorded(recorded)
    for place in (".", "over", "lib/thing"):
        recorded.run("rm -rf kgp again", cwd=recorded.live / place)
    assert_recorded(recorded)
    if shutil.which("vim"):
        recorded.run("vim -es -u NONE -c 'normal ihello' -c wq plain.txt")
        assert_recorded(recorded)
    recorded.check_sound()


def test_directories_change_places(recorded: Bench) -> None:
    """Renames over directories, exchanged ones, kinds that change, and names used again at once."""
    for place in ("", "over", "lib/thing"):
        top = recorded.live / place
        write_files(top, {"a/one": "1", "a/sub/two": "2", "b/three": "3"})
    snapshot(recorded)
    for place in ("", "over", "lib/thing"):
        top = recorded.live / place
        os.rename(top / "a", top / "t")
        os.rename(top / "b", top / "a")
        os.rename(top / "t", top / "b")
        (top / "b/one").unlink()
        (top / "b/one").mkdir()
        (top / "b/one/inner").write_text("dir now")
        shutil.rmtree(top / "a")
        (top / "a").write_text("file now")
    assert_recorded(recorded)
    recorded.check_sound()


def test_git_inside_a_checkout(recorded: Bench) -> None:
    """Commits, a rebase and switches, in the mounted root and in a git entry."""
    recorded.git("init", "-q", "-b", "main")
    recorded.run("printf 'lib/\nover/\n.clive\n' > .git/info/exclude")
    for place in (".", "lib/thing"):
        recorded.run(
            """
            for i in 1 2 3 4; do echo $i > f$i; git add f$i; git commit -qm $i; done
            git checkout -q -b topic HEAD~2; echo t > t; git add t; git commit -qm t
            git rebase -q - ; git checkout -q -; git merge -q topic
            """,
            cwd=recorded.live / place,
        )
    past = snapshot(recorded)
    assert not (past / ".git").exists()
    assert not (past / "lib/thing/.git").exists()
    assert (past / "lib/thing/t").read_text() == "t\n"
    # `lib/` is ignored by the root's repository, and a mount entry's rules start anew
    assert shown(recorded.live) == shown(past)
    recorded.check_sound()


def test_changes_outside_the_mount(recorded: Bench) -> None:
    data = recorded.base / "data"
    (recorded.root / "plain.txt").write_text("outside\n")
    (recorded.root / "made").mkdir()
    write_files(recorded.root, {"made/in/deep.txt": "deep\n"})
    write_files(data, {"sub/two.txt": "changed below\n", "more/x": "x\n"})
    assert_recorded(recorded)
    newest = points(recorded)[0]
    assert newest["origin"] == "outside"
    os.rename(recorded.root / "made", recorded.root / "moved")
    shutil.rmtree(data / "more")
    write_files(recorded.root, {"moved/in/deep.txt": "deeper\n"})
    assert_recorded(recorded)
    recorded.check_sound()


def test_what_changed_while_nothing_was_mounted_is_one_point(recorded: Bench) -> None:
    count = len(points(recorded))
    recorded.unmount()
    (recorded.root / "plain.txt").write_text("while away\n")
    (recorded.root / "new.txt").write_text("new\n")
    (recorded.base / "data/one.txt").unlink()
    recorded.mount()
    assert_recorded(recorded)
    made = points(recorded)
    assert len(made) == count + 1
    assert made[0]["origin"] == "outside"
    assert sorted(made[0]["paths"]) == ["new.txt", "over/one.txt", "plain.txt"]
    recorded.check_sound()


def test_a_long_open_file_is_recorded(recorded: Bench) -> None:
    session = recorded.live / ".clive/sessions" / recorded.status()["workspaces"][0]["session"]
    for place in ("log", "over/log"):
        with open(recorded.live / place, "w") as file:
            file.write("synced\n")
            file.flush()
            os.fsync(file.fileno())
            until(lambda p=place: text_of(session / "latest" / p) == "synced\n", "what was synced")
            file.write("not synced\n")
            file.flush()
            assert (snapshot(recorded) / place).read_text() == "synced\nnot synced\n"
            file.write("nobody asks\n")
            file.flush()
            until(lambda p=place: "nobody asks" in text_of(session / "latest" / p), "what was written")
    recorded.check_sound()


def test_a_mapped_file_is_recorded(recorded: Bench) -> None:
    for place in ("mapped", "over/mapped"):
        path = recorded.live / place
        path.write_bytes(b"." * 8192)
        snapshot(recorded)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[4096:4100] = b"mmap"
            mapped.flush()
        past = snapshot(recorded)
        assert (past / place).read_bytes()[4090:4106] == b"." * 6 + b"mmap" + b"." * 6
    recorded.check_sound()


def test_a_file_that_grows_all_the_time_is_never_torn(recorded: Bench) -> None:
    """Every point of a file that is written in whole lines has whole lines, in order."""
    writer = subprocess.Popen(
        ["sh", "-c", "for i in $(seq 3000); do echo line-$i-end; done > growing; echo done > finished"],
        cwd=recorded.live / "over",
    )
    until(lambda: (recorded.live / "over/finished").exists(), "the writer")
    assert writer.wait() == 0
    assert_recorded(recorded)
    for point in points(recorded, "over/growing"):
        text = (recorded.live / ".clive/at" / point["name"] / "over/growing").read_text()
        lines = text.splitlines()
        assert lines == [f"line-{n + 1}-end" for n in range(len(lines))]
        assert not text or text.endswith("\n")
    recorded.check_sound()


def test_sparse_and_large_files(recorded: Bench) -> None:
    for place in ("", "over"):
        top = recorded.live / place
        with open(top / "sparse", "wb") as file:
            file.seek(300 << 20)
            file.write(b"end")
        (top / "big").write_bytes(os.urandom(1 << 20) * 20)
    assert_recorded(recorded)
    with open(recorded.live / "over/big", "r+b") as file:
        file.seek(12345)
        file.write(b"changed")
    assert_recorded(recorded)
    recorded.check_sound()


def test_ignored_files(recorded: Bench) -> None:
    write_files(
        recorded.live,
        {
            ".gitignore": "*.o\nbuild/\n!keep.o\n",
            "x.o": "no",
            "keep.o": "yes",
            "build/out": "no",
            "src/deep.o": "no",
            "src/deep.c": "yes",
            "over/x.o": "the entry's rules start anew",
        },
    )
    past = snapshot(recorded)
    assert not (past / "x.o").exists()
    assert not (past / "build").exists()
    assert not (past / "src/deep.o").exists()
    assert (past / "keep.o").read_text() == "yes"
    assert (past / "src/deep.c").read_text() == "yes"
    assert (past / "over/x.o").exists()
    # A rule that goes brings what it hid.
    (recorded.live / ".gitignore").write_text("build/\n")
    past = snapshot(recorded)
    assert (past / "x.o").read_text() == "no"
    assert (past / "src/deep.o").read_text() == "no"
    recorded.check_sound()


def test_what_git_ignores_everywhere_is_not_recorded(shop: Bench) -> None:
    """The files of core.excludesFile and info/exclude; .gitignore has the last word, as with git. In forks as well."""
    shop.unmount()
    (shop.home / "everywhere").write_text("*.swp\n*.key\n*.bak\n")
    shop.git("config", "--global", "core.excludesFile", "~/everywhere", cwd=shop.root)
    shop.git("init", "-q", cwd=shop.root)
    (shop.root / ".git/info/exclude").write_text("here\n!*.bak\n")
    (shop.root / ".gitignore").write_text("!*.key\n")
    shop.mount()
    for top in (shop.live, shop.live / "lib/thing"):
        for name in ("a.swp", "b.key", "c.bak", "here", "seen"):
            (top / name).write_text("1\n")
    past = snapshot(shop)
    assert sorted(name for name in os.listdir(past) if name in os.listdir(shop.live)) == sorted(
        name for name in os.listdir(shop.live) if name not in (".git", "a.swp", "here")
    )
    assert {"seen", "here"} <= set(os.listdir(past / "lib/thing"))
    assert {"a.swp"}.isdisjoint(os.listdir(past / "lib/thing"))
    shop.cli("fork", "try")
    fork = shop.live / ".clive/forks/try"
    assert (fork / "a.swp").read_text() == "1\n"
    for name in ("a.swp", "here", "new.swp", "seen"):
        (fork / name).write_text("2\n")
    merged = json.loads(shop.cli("merge", "try", "--json").stdout)
    assert [each["path"] for each in merged["changes"]] == ["seen"]
    shop.check_sound()


def test_the_index_and_info_exclude_of_a_linked_worktree_count(bench: Bench) -> None:
    main = bench.repository("main", {".gitignore": "*.gen\n", "first": "1\n"})
    (main / "tracked.gen").write_text("t\n")
    bench.git("add", "-f", "tracked.gen", cwd=main)
    bench.git("commit", "-qm", "tracked", cwd=main)
    (main / ".git/info/exclude").write_text("excluded\n")
    bench.root.rmdir()
    bench.git("worktree", "add", "-q", bench.root, cwd=main)
    bench.write_toml('[workspace]\nname = "shop"\n')
    for name in ("untracked.gen", "excluded", "seen"):
        (bench.root / name).write_text("u\n")
    bench.mount()
    assert sorted(os.listdir(snapshot(bench))) == [".gitignore", "Clive.toml", "first", "seen", "tracked.gen"]
    bench.check_sound()


def test_exclude_and_ignored_of_clive_toml(recorded: Bench) -> None:
    files = {"x.o": "o", "x.tmp": "t", "over/y.tmp": "t", "lib/thing/z.tmp": "t"}
    write_files(recorded.live, {".gitignore": "*.o\n", **files})
    past = snapshot(recorded)
    assert (past / "x.tmp").exists()
    assert (past / "over/y.tmp").exists()
    assert not (past / "x.o").exists()
    toml = recorded.root / "Clive.toml"
    toml.write_text(toml.read_text() + '\n[sessions]\nexclude = ["*.tmp"]\nignored = true\n')
    until(lambda: not (snapshot(recorded) / "x.tmp").exists(), "the new settings")
    past = snapshot(recorded)
    assert not (past / "over/y.tmp").exists()
    assert not (past / "lib/thing/z.tmp").exists()
    assert (past / "x.o").read_text() == "o"
    recorded.check_sound()


def test_the_mount_table_changes_while_recording(recorded: Bench) -> None:
    second = recorded.repository("second", {"only": "here\n", "d/e": "f\n"})
    write_files(recorded.root, {"vendor/second/hidden": "below the entry\n"})
    assert_recorded(recorded)
    recorded.cli("attach", "vendor/second", f"git+{second}@main", "-w", "shop")
    assert_recorded(recorded)
    (recorded.live / "vendor/second/only").write_text("edited\n")
    recorded.cli("detach", "vendor/second", "-w", "shop")
    past = snapshot(recorded)
    assert (past / "vendor/second/hidden").exists()
    assert_recorded(recorded)
    recorded.cli("replace", "lib/thing", f"git+{second}@main", "-w", "shop", check=False)
    assert_recorded(recorded)
    assert len(points(recorded, "vendor/second/only")) >= 2
    recorded.check_sound(allowed="thing|second")


@pytest.mark.parametrize("write", ["through", "overlay"])
def test_a_command_that_changes_the_mount_table_is_one_point_of_its_own(bench: Bench, write: str) -> None:
    """Clive.toml and what it shows are in it together, and nothing that somebody else has changed."""
    bench.repository("thing", {"README": "hello\n"})
    write_files(bench.base / "data", {"one.txt": "one\n"})
    bench.write_toml(f'[workspace]\nname = "shop"\nwrite = "{write}"\n')
    bench.mount()
    snapshot(bench)
    for command, shown_after in (
        (["attach", "lib", "git+../thing"], "lib/README"),
        (["replace", "lib", "../data"], "lib/one.txt"),
        (["detach", "lib"], None),
    ):
        seq = points(bench)[0]["seq"]
        (bench.live / "saved.txt").write_text(f"before {command[0]}\n")
        bench.cli(*command, cwd=bench.root)
        newest = until(
            lambda origin=f"command:{command[0]}": next(
                (each for each in points(bench)[:1] if each["origin"] == origin), None
            ),
            f"a point of {command[0]}",
        )
        assert {path.partition("/")[0] for path in newest["paths"]} == {"Clive.toml", "lib"}, newest
        assert newest["message"].startswith(f"{command[0]} lib")
        assert {each["origin"] for each in points(bench) if seq < each["seq"] < newest["seq"]} == {"mount"}
        past = bench.live / ".clive" / "at" / newest["name"]
        assert ("lib" in (past / "Clive.toml").read_text()) == (shown_after is not None)
        assert (past / "lib").exists() == (shown_after is not None)
        if shown_after is not None:
            assert (past / shown_after).exists()


def test_a_followed_ref(bench: Bench) -> None:
    source = bench.repository("thing", {"a": "1\n", "d/b": "2\n"})
    bench.write_toml('[workspace]\nname = "shop"\n[mounts.lib]\ngit = "../thing"\nref = "main"\nfollow = true\n')
    bench.mount()
    snapshot(bench)
    write_files(source, {"a": "changed upstream\n", "new": "n\n"})
    bench.git("add", "-A", cwd=source)
    bench.git("commit", "-qm", "second", cwd=source)
    until(lambda: (bench.live / "lib/a").read_text() == "changed upstream\n", "the new commit")
    assert_recorded(bench)
    assert (bench.live / ".clive/at/start/lib/a").read_text() == "1\n"
    bench.check_sound()


def test_sessions(recorded: Bench) -> None:
    (recorded.live / "plain.txt").write_text("in the first\n")
    recorded.cli("session", "new", "refactor")
    (recorded.live / "plain.txt").write_text("in the second\n")
    listed = json.loads(recorded.cli("session", "list", "--json").stdout)
    assert listed[0]["name"] == "refactor"
    assert listed[0]["end"] is None
    assert listed[1]["end"] is not None
    assert (recorded.live / ".clive/at/refactor:start/plain.txt").read_text() == "in the first\n"
    assert (recorded.live / ".clive/sessions/refactor/latest/plain.txt").read_text() == "in the second\n"
    wrong = recorded.cli("session", "new", "refactor", check=False)
    assert wrong.returncode == 1
    assert "already" in wrong.stderr
    wrong = recorded.cli("session", "new", "No Such/Name", check=False)
    assert wrong.returncode in (1, 2)
    assert "a-z" in wrong.stderr
    recorded.cli("session", "end")
    assert json.loads(recorded.cli("session", "list", "--json").stdout)[1]["end"] is not None
    recorded.check_sound()


def test_the_past_is_read_only(recorded: Bench) -> None:
    past = snapshot(recorded)
    for action in (
        lambda: (past / "plain.txt").write_text("x"),
        lambda: (past / "new").write_text("x"),
        lambda: (past / "plain.txt").unlink(),
        lambda: (past / "dir").mkdir(),
        lambda: os.rename(past / "plain.txt", past / "other"),
        lambda: os.chmod(past / "plain.txt", 0o600),
        lambda: os.truncate(past / "plain.txt", 0),
        lambda: os.utime(past / "plain.txt"),
        lambda: os.symlink("x", past / "link"),
    ):
        with pytest.raises(OSError) as caught:
            action()
        assert caught.value.errno == 30, action
    assert not (past / ".clive").exists()
    with pytest.raises(PermissionError):
        (recorded.live / ".clive/made").mkdir()
    assert not (recorded.live / ".clive/at/nonsense").exists()
    assert not (recorded.live / ".clive/at/-50y").exists()
    wrong = recorded.cli("show", "nonsense:plain.txt", check=False)
    assert wrong.returncode in (1, 2)
    assert "-5m" in wrong.stderr
    recorded.check_sound()


def test_a_directory_that_the_owner_may_not_read(recorded: Bench) -> None:
    (recorded.live / "secret").write_text("s")
    (recorded.live / "secret").chmod(0)
    assert_recorded(recorded)
    st = os.stat(recorded.live / ".clive/at/latest/secret")
    assert stat.S_IMODE(st.st_mode) == 0
    recorded.check_sound()


def test_nothing_is_recorded_of_git_and_clive_names(recorded: Bench) -> None:
    (recorded.live / "over/.git").mkdir()
    (recorded.live / "over/.git/x").write_text("x")
    past = snapshot(recorded)
    assert not (past / "over/.git").exists()
    recorded.check_sound()


def test_large_files_that_are_being_read_when_it_ends(recorded: Bench) -> None:
    """More of them than are read aside at a time: all are in the last point."""
    names = [f"large-{number}" for number in range(4)]
    for name in names:
        (recorded.live / "over" / name).write_bytes(os.urandom(20 << 20))
    recorded.unmount()
    until(lambda: not recorded.daemons(), "the end of the daemon")
    for name in names:
        told = json.loads(recorded.cli("show", f"latest:over/{name}", "--json").stdout)
        assert told["size"] == 20 << 20
    recorded.check_sound()


def test_what_nobody_recorded_is_said(recorded: Bench) -> None:
    for command, said in (
        (("show", "yesterday 25:00:plain.txt"), "'yesterday 25:00' is no time that there is"),
        (("show", ":plain.txt"), "neither a time nor a point"),
        (("show", "a:b:c"), "neither a time nor a point"),
        (("show", "@999:over:one.txt"), "there is no point 999"),
        (("log", "nowhere"), "no point that was looked at changed nowhere"),
    ):
        done = recorded.cli(*command, check=False)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    for command in (("log", "-n", "-1"), ("find-change", ".", "--contains", "x", "-n", "-1"), ("stats", "--top=-1")):
        assert recorded.cli(*command, check=False).returncode == 2
    recorded.check_sound()


def test_bisect(recorded: Bench) -> None:
    """CMD runs in each point's directory, by git's exit codes."""
    file = recorded.live / "plain.txt"
    for number in range(12):
        file.write_text(f"{number}\n")
        snapshot(recorded)
    script = 'test "$(cat plain.txt)" = plain && exit 0; n=$(cat plain.txt); test $n = 6 && exit 125; test $n -lt 8'
    done = recorded.cli("bisect", "--json", "--", "sh", "-c", script, check=False, cwd=recorded.live)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    past = recorded.live / ".clive/at" / told["point"]["name"]
    assert (past / "plain.txt").read_text() == "8\n"
    assert told["tried"] < 9
    assert recorded.cli("bisect", "--from", "-10y", "--", "true", check=False).returncode == 125
    assert recorded.cli("bisect", "--", "true").returncode == 0
    assert recorded.cli("bisect", "--", "false", check=False).returncode == 125
    assert recorded.cli("bisect", "--", "sh", "-c", "kill -9 $$", check=False).returncode == 125
    assert recorded.cli("bisect", "--", "no-such-command", check=False).returncode == 125
    assert recorded.cli("bisect", check=False).returncode == 2
    recorded.check_sound()
