"""The table of mount entries is alive: commands and edits of `Clive.toml` take effect while files are open."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import SAMPLE_TOML, WAIT_S, Bench, until, write_files

pytestmark = pytest.mark.mount

PLUS = '\n[mounts."more/data"]\nlocal = "../data"\nwrite = "none"\n'


class Shell:
    """A shell that works in *directory*, and answers each line."""

    def __init__(self, directory: Path) -> None:
        self._bash = subprocess.Popen(["bash"], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, command: str) -> str:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {command}; }} 2>&1 | tr '\\n' ' '; echo\n")
        self._bash.stdin.flush()
        return self._bash.stdout.readline().strip()

    def close(self) -> None:
        with self._bash:
            self._bash.kill()


@pytest.fixture
def shell_in() -> Iterator[Callable[[Path], Shell]]:
    with contextlib.ExitStack() as stack:

        def start(directory: Path) -> Shell:
            return stack.enter_context(contextlib.closing(Shell(directory)))

        yield start


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("how", ["in place", "by rename"])
def test_saving_clive_toml_takes_effect(shop: Bench, where: str, how: str) -> None:
    base = shop.live if where == "inside" else shop.root

    def save(text: str) -> None:
        if how == "in place":
            (base / "Clive.toml").write_text(text)
        else:
            (base / "Clive.toml.new").write_text(text)
            (base / "Clive.toml.new").replace(base / "Clive.toml")

    assert not (shop.live / "more").exists()
    with (shop.live / "over/one.txt").open() as held:
        save(SAMPLE_TOML + PLUS)
        # `local` outside of the workspace, written by an editor: it needs permission first.
        until(lambda: len(shop.status()["workspaces"][0]["mounts"]) == 3, "the third entry")
        assert shop.entry("more/data")["state"] == "not-allowed"
        assert "clivefs allow" in shop.entry("more/data")["error"]
        assert os.listdir(shop.live / "more/data") == []
        shop.cli("allow", shop.root)
        until(lambda: shop.entry("more/data")["state"] == "mounted", "the permitted entry")
        assert (shop.live / "more/data/one.txt").read_text() == "one\n"
        save(SAMPLE_TOML)
        until(lambda: not (shop.live / "more").exists(), "the end of the entry")
        assert "more" not in os.listdir(shop.live)
        assert held.read() == "one\n"


def test_a_broken_clive_toml_leaves_the_last_good_one(shop: Bench) -> None:
    for broken in ("[mounts", SAMPLE_TOML + "[nonsense]\n", SAMPLE_TOML + '[mounts."lib/thing/in"]\nlocal = "x"\n', ""):
        (shop.live / "Clive.toml").write_text(broken)
        until(lambda: "error" in shop.status()["workspaces"][0], "the error in `status`")
        assert (shop.live / "lib/thing/README").read_text() == "hello\n"
        assert (shop.live / "over/one.txt").read_text() == "one\n"
        assert "Clive.toml" in (shop.live / ".clive/status").read_text()
        shown = shop.cli("status", check=False).stdout
        assert "Clive.toml" in shown
        (shop.live / "Clive.toml").write_text(SAMPLE_TOML)
        until(lambda: "error" not in shop.status()["workspaces"][0], "the end of the error")
    (shop.root / "Clive.toml").unlink()
    until(lambda: "error" in shop.status()["workspaces"][0], "the missing file in `status`")
    assert (shop.live / "over/one.txt").read_text() == "one\n"


def test_attach_and_detach_while_in_use(shop: Bench, shell_in: Callable[[Path], Shell]) -> None:
    write_files(shop.root, {"vendor/own.txt": "own\n", "vendor/data/hidden.txt": "hidden\n"})
    until((shop.live / "vendor/own.txt").exists, "the new directory")
    above = shell_in(shop.live / "vendor")
    assert above("ls data") == "hidden.txt"
    shop.cli("attach", "vendor/data", "../data", "--write", "overlay", cwd=shop.live)
    assert "[mounts" in (shop.root / "Clive.toml").read_text()
    assert above("ls data") == "one.txt sub"
    assert above("ls") == "data own.txt"
    below = shell_in(shop.live / "vendor/data/sub")
    assert below("cat two.txt") == "two"
    with (shop.live / "vendor/data/one.txt").open("r+") as held:
        held.write("ONE")
        held.flush()
        shop.cli("detach", "vendor/data", cwd=shop.live)
        assert above("ls data") == "hidden.txt"
        held.seek(0)
        assert held.read() == "ONE\n"
        held.write("after")
        held.flush()
        assert os.fstat(held.fileno()).st_size == 9
    assert above("cat own.txt") == "own"
    assert "No such file" in below("ls ..; echo x > f; mkdir d") or below("ls -A") == ""
    # Attached again, the edits are there again.
    shop.cli("attach", "vendor/data", "../data", "--write", "overlay", cwd=shop.live)
    assert (shop.live / "vendor/data/one.txt").read_text() == "ONE\nafter"


def test_an_entry_can_be_attached_where_nothing_is(shop: Bench) -> None:
    shop.cli("attach", "a/b/c/d", "git+../thing@main", cwd=shop.live)
    assert (shop.live / "a/b/c/d/README").read_text() == "hello\n"
    assert shop.git("status", "--porcelain", cwd=shop.live / "a/b/c/d") == ""
    (shop.live / "a/b/beside").write_text("made below a bridge")
    assert (shop.root / "a/b/beside").read_text() == "made below a bridge"
    for act in (
        lambda: os.rmdir(shop.live / "a/b/c/d"),
        lambda: os.rename(shop.live / "a/b/c/d", shop.live / "elsewhere"),
        lambda: os.rename(shop.live / "a", shop.live / "elsewhere"),
        lambda: os.rmdir(shop.live / "a/b/c"),
    ):
        with pytest.raises(OSError, match=r"\[Errno (16|39)\]"):
            act()
    with pytest.raises(OSError, match=r"\[Errno 18\]"):
        os.rename(shop.live / "a/b/beside", shop.live / "a/b/c/d/beside")
    shop.run("mv a/b/beside a/b/c/d/beside")  # mv copies then
    shop.cli("detach", "a/b/c/d", cwd=shop.live)
    assert os.listdir(shop.live / "a/b") == []


def test_replace_by_a_local_checkout_and_back(shop: Bench, shell_in: Callable[[Path], Shell]) -> None:
    shop.git("clone", "-q", "thing", "checkout", cwd=shop.base)
    thing = shop.live / "lib/thing"
    shell = shell_in(thing / "src/deep")
    assert shell("cat b.c") == "int b;"
    (thing / "README").write_text("edited in the ref\n")
    (thing / "only-here").write_text("x\n")
    with (thing / "src/a.c").open() as held:
        shop.cli("replace", "lib/thing", "../checkout", cwd=shop.live)
        assert held.read() == "int a;\n"
    assert shop.entry("lib/thing")["write"] == "through"
    assert (thing / "README").read_text() == "hello\n"
    assert not (thing / "only-here").exists()
    assert (thing / ".git").is_dir()
    (thing / "src/deep/b.c").write_text("int through;\n")
    assert (shop.base / "checkout/src/deep/b.c").read_text() == "int through;\n"
    assert shell("cat b.c") == "int through;"
    assert shell("pwd -P") == str(thing / "src/deep")
    assert shop.git("status", "--porcelain", cwd=thing) == " M src/deep/b.c\n"

    shop.cli("replace", "lib/thing", "git+../thing@main", cwd=shop.live)
    assert (thing / "README").read_text() == "edited in the ref\n"
    assert (thing / "only-here").read_text() == "x\n"
    assert (thing / "src/deep/b.c").read_text() == "int b;\n"
    assert shell("cat b.c") == "int b;"
    assert shell("echo new > new; cat ../deep/new") == "new"
    assert shop.git("status", "--porcelain", cwd=thing) == " M README\n?? only-here\n?? src/deep/new\n"

    shop.cli("replace", "lib/thing", "../checkout", cwd=shop.live)
    assert (thing / "src/deep/b.c").read_text() == "int through;\n"


def test_getcwd_goes_on_where_the_table_changes(shop: Bench, shell_in: Callable[[Path], Shell]) -> None:
    """The kernel takes a directory whose name it has to forget for a deleted one, until somebody looks that up: git and
    others give up there. Nothing here looks anything up by its whole path."""
    shop.git("clone", "-q", "thing", "checkout", cwd=shop.base)
    places = [shop.live, shop.live / "lib", shop.live / "lib/thing", shop.live / "lib/thing/src/deep"]
    shells = {str(place): shell_in(place) for place in places}

    def all_found() -> bool:
        return {place: shell("readlink /proc/$BASHPID/cwd") for place, shell in shells.items()} == {
            place: place for place in shells
        }

    assert all_found()
    for words in (
        ("replace", "lib/thing", "../checkout"),
        ("replace", "lib/thing", "git+../thing@main"),
        ("attach", "lib/more", "../data"),
        ("fork", "try"),
        ("detach", "lib/more"),
    ):
        shop.cli(*words, "-w", "shop", cwd=shop.base / "shop")
        assert all_found(), words
    assert shells[str(places[3])]("git rev-parse --show-prefix") == "src/deep/"
    shop.write_toml((shop.root / "Clive.toml").read_text() + PLUS)
    until(lambda: "more" in shells[str(shop.live)]("ls"), "the new entry")
    until(all_found, "everybody can be found")


def test_replace_by_another_ref(shop: Bench, shell_in: Callable[[Path], Shell]) -> None:
    origin = shop.base / "thing"
    shop.git("switch", "-q", "-c", "next", cwd=origin)
    write_files(origin, {"README": "next\n", "added": "a\n"})
    (origin / "run.sh").unlink()
    shop.git("add", "-A", cwd=origin)
    shop.git("commit", "-qm", "next", cwd=origin)
    thing = shop.live / "lib/thing"
    shop.run("find . -type f | xargs cat", cwd=thing)
    shell = shell_in(thing)
    with (thing / "README").open() as held:
        shop.cli("replace", "lib/thing", "git+../thing@next", cwd=shop.live)
        assert held.read() == "hello\n"
    assert (thing / "README").read_text() == "next\n"
    assert sorted(os.listdir(thing)) == [".git", "README", "added", "src"]
    assert shell("cat README added") == "next a"
    assert shop.git("status", "--porcelain", cwd=thing) == ""


def test_a_source_that_is_missing_and_comes(shop: Bench) -> None:
    shop.cli("attach", "late", "../late", check=False, cwd=shop.live)
    if "late" not in (shop.root / "Clive.toml").read_text():
        (shop.root / "Clive.toml").write_text(SAMPLE_TOML + '\n[mounts.late]\nlocal = "../late"\n')
        until(lambda: len(shop.status()["workspaces"][0]["mounts"]) == 3, "the third entry")
        shop.cli("allow", shop.root, check=False)
    assert shop.entry("late")["state"] == "error"
    assert os.listdir(shop.live / "late") == []
    write_files(shop.base / "late", {"f": "here now\n"})
    until(lambda: (shop.live / "late/f").exists(), "the source that came")


def test_toml_changed_by_git_needs_permission(shop: Bench) -> None:
    shop.git("init", "-q", "-b", "main", cwd=shop.root)
    shop.git("add", "Clive.toml", cwd=shop.root)
    shop.git("commit", "-qm", "mine", cwd=shop.root)
    shop.git("switch", "-q", "-c", "theirs", cwd=shop.root)
    (shop.base / "secret").mkdir()
    (shop.base / "secret/key").write_text("secret")
    (shop.root / "Clive.toml").write_text(SAMPLE_TOML + '\n[mounts.loot]\nlocal = "../secret"\n')
    shop.git("commit", "-qam", "theirs", cwd=shop.root)
    until(lambda: len(shop.status()["workspaces"][0]["mounts"]) == 3, "the third entry")
    assert shop.entry("loot")["state"] == "not-allowed"
    assert os.listdir(shop.live / "loot") == []
    with pytest.raises(OSError):
        (shop.live / "loot/key").read_text()
    shop.git("switch", "-q", "main", cwd=shop.live)
    until(lambda: not (shop.live / "loot").exists(), "the end of the entry")


def test_control_directory_is_closed(shop: Bench) -> None:
    assert ".clive" not in os.listdir(shop.live)
    assert "shop" in (shop.live / ".clive/status").read_text()
    for act in (
        lambda: (shop.live / ".clive/new").write_text("x"),
        lambda: (shop.live / ".clive/new").mkdir(),
        lambda: (shop.live / ".clive/status").unlink(),
        lambda: (shop.live / ".clive/status").rename(shop.live / "status"),
        lambda: (shop.live / ".clive").rename(shop.live / "other"),
        lambda: (shop.live / ".clive").rmdir(),
        lambda: (shop.live / "plain.txt").rename(shop.live / ".clive/plain"),
        lambda: (shop.mountpoint / "other").mkdir(),
        lambda: shop.live.rename(shop.mountpoint / "other"),
    ):
        with pytest.raises(OSError, match=r"\[Errno (1|16|18|30|13)\]"):
            act()


def test_many_changes_in_a_row(shop: Bench, shell_in: Callable[[Path], Shell]) -> None:
    shell = shell_in(shop.live / "over/sub")
    for i in range(10):
        shop.cli("attach", f"many/{i}", "../data", "--write", "overlay", cwd=shop.live)
        (shop.live / f"many/{i}/own").write_text(str(i))
    assert sorted(os.listdir(shop.live / "many"), key=int) == [str(i) for i in range(10)]
    for i in range(10):
        assert (shop.live / f"many/{i}/own").read_text() == str(i)
        shop.cli("detach", f"many/{i}", cwd=shop.live)
    assert not (shop.live / "many").exists()
    assert shell("cat two.txt") == "two"


def test_the_table_changes_under_load(shop: Bench) -> None:
    """Three writers in the directories that entries come to and go from; nothing but ENOENT may reach them."""
    shop.git("clone", "-q", "thing", "checkout", cwd=shop.base)
    (shop.root / "p/q").mkdir(parents=True)
    script = (
        "import errno, os, sys\n"
        "for i in range(10**9):\n"
        "    try:\n"
        "        if os.path.exists('stop'): break\n"
        "        a, b = f'p/q/{sys.argv[1]}-{i % 7}', f'p/{sys.argv[1]}-{i % 5}'\n"
        "        open(a, 'w').write('x'); os.rename(a, b); os.listdir('p'); os.listdir('p/q')\n"
        "        a, b = f'lib/thing/src/{sys.argv[1]}-{i % 7}', f'lib/thing/{sys.argv[1]}-{i % 5}'\n"
        "        open(a, 'w').write('x'); os.rename(a, b); os.listdir('lib/thing/src')\n"
        "        open('lib/thing/README').read(); os.stat('p/q/e/one.txt'); open('p/q/e/one.txt').read()\n"
        "    except OSError as error:\n"
        "        if error.errno not in (errno.ENOENT, errno.ESTALE): raise\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, letter], cwd=shop.live) for letter in "abc"]
    try:
        for i in range(6):
            shop.cli("attach", "p/q/e", "../data", "--write", "overlay", cwd=shop.live)
            shop.cli("replace", "lib/thing", "git+../thing@main" if i % 2 else "../checkout", cwd=shop.live)
            shop.cli("detach", "p/q/e", cwd=shop.live)
    finally:
        (shop.root / "stop").touch()
        codes = [writer.wait(WAIT_S) for writer in writers]
    assert codes == [0] * 3
    assert (shop.live / "lib/thing/src/deep/b.c").read_text() == "int b;\n"
    shop.run("find . > /dev/null; git -C lib/thing status > /dev/null")
    shop.check_sound()
