"""`overlay diff|export|commit|reset`, `blame`, `.clive/base`: what people do with their edits."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from faults import kill_at
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount

LINES = "".join(f"line {number}\n" for number in range(1, 13))
FILES: dict[str, str | bytes] = {
    "README": "hello\n",
    "src/a.c": LINES,
    "src/b.c": "int b;\n",
    "bin.dat": b"\0\1\2" * 50,
    "run.sh": "#!/bin/sh\n",
    ".gitignore": "*.pyc\n",
}
PATCH = """--- a/src/a.c
+++ b/src/a.c
@@ -1,3 +1,3 @@
 line 1
-line 2
+patched 2
 line 3
"""


def write_lib(bench: Bench) -> None:
    """A git entry `lib` with one patch, an archive entry `mod`, a through entry `data`, an overlay `over`."""
    bench.repository("thing", FILES)
    with zipfile.ZipFile(bench.base / "mod.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"mod-1/{name}", content)
    write_files(bench.base / "data", {"one.txt": "one\n"})
    write_files(bench.root, {"patches/one.patch": PATCH, "own.txt": "own\n"})
    bench.write_toml(
        '[workspace]\nname = "shop"\n\n'
        '[mounts."lib"]\ngit = "../thing"\nref = "main"\npatches = ["patches/one.patch"]  # mine\n\n'
        '[mounts."mod"]\narchive = "../mod.zip"\n\n'
        '[mounts."data"]\nlocal = "../data"\n\n'
        '[mounts."over"]\nlocal = "../data"\nwrite = "overlay"\n'
    )


@pytest.fixture
def lib(bench: Bench) -> Bench:
    """The workspace of `write_lib`, mounted."""
    write_lib(bench)
    bench.mount()
    return bench


def edit(top: Path) -> None:
    (top / "src/a.c").write_text((top / "src/a.c").read_text().replace("line 9\n", "mine 9\n"))
    (top / "src/b.c").rename(top / "src/c.c")
    (top / "bin.dat").write_bytes(b"\0new" * 40)
    os.chmod(top / "run.sh", 0o755)
    (top / "new").mkdir()
    (top / "new/file").write_text("new\n")
    os.symlink("README", top / "link")
    (top / "README").unlink()


def shown(top: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for here, directories, names in os.walk(top):
        for name in [*directories, *names]:
            place = Path(here) / name
            st = place.lstat()
            content: Any = None
            if stat.S_ISLNK(st.st_mode):
                content = os.readlink(place)
            elif stat.S_ISREG(st.st_mode):
                content = (place.read_bytes(), st.st_mtime_ns)
            found[str(place.relative_to(top))] = (st.st_mode, content)
    return found


def answer(bench: Bench, *args: object) -> Any:
    return json.loads(bench.cli(*args, "--json").stdout)


def test_a_diff_is_what_git_applies(lib: Bench) -> None:
    edit(lib.live / "lib")
    patch = base64.b64decode(answer(lib, "overlay", "diff", "lib")["patch_b64"])
    assert b"rename from src/b.c" in patch
    assert b"GIT binary patch" in patch
    copy = lib.base / "copy"
    lib.git("clone", "-q", lib.base / "thing", copy, cwd=lib.base)
    lib.run(["git", "apply", "-"], cwd=copy, input=PATCH)
    lib.run(["git", "apply", "--binary", "-"], cwd=copy, input=patch.decode())
    lib.run(["diff", "-r", "--no-dereference", "--exclude=.git", copy, lib.live / "lib"])
    stat_of = answer(lib, "overlay", "diff", "lib", "--stat")["files"]
    assert {each["path"]: (each["added"], each["removed"]) for each in stat_of} == {
        "README": (0, 1), "bin.dat": (None, None), "link": (1, 0), "new/file": (1, 0), "run.sh": (0, 0),
        "src/a.c": (1, 1), "src/b.c": (0, 1), "src/c.c": (1, 0),
    }  # fmt: skip
    lib.cli("overlay", "export", "lib", "-o", lib.base / "mine.patch", "--dry-run")
    assert not (lib.base / "mine.patch").exists()
    lib.cli("overlay", "export", "lib", "-o", lib.base / "mine.patch")
    assert (lib.base / "mine.patch").read_bytes() == patch
    lib.check_sound()


@pytest.mark.parametrize("entry", ["lib", "mod"])
def test_a_layer_shows_the_same(lib: Bench, entry: str) -> None:
    top = lib.live / entry
    edit(top)
    (top / "private").write_text("p\n")
    os.chmod(top / "private", 0o600)
    before, toml = shown(top), (lib.root / "Clive.toml").read_text()
    dry = answer(lib, "overlay", "export", entry, "-o", "patches/two.patch", "--as-layer", "--dry-run")
    assert (lib.root / "Clive.toml").read_text() == toml
    assert not (lib.root / "patches/two.patch").exists()
    with open(top / "src/a.c") as held, open(top / "src/c.c", "a") as writing:
        done = answer(lib, "overlay", "export", entry, "-o", "patches/two.patch", "--as-layer")
        assert set(dry["files"]) == set(done["files"]) > {"src/a.c", "link"}
        assert shown(top) == before
        assert "mine 9" in held.read()
        writing.write("more\n")
    assert (top / "src/c.c").read_text() == "int b;\nmore\n"
    (top / "src/c.c").write_text("int b;\n")
    layers = {each["path"]: each["layer"] for each in answer(lib, "blame", entry)["files"]}
    assert layers["new/file"] == layers["link"] == layers["src/a.c"] == "patch:patches/two.patch"
    assert layers["private"] == "upper"
    assert "# mine" in (lib.root / "Clive.toml").read_text()
    if entry == "lib":
        assert 'patches = ["patches/one.patch", "patches/two.patch"]  # mine' in (lib.root / "Clive.toml").read_text()
    assert done["stay"] == ["private", "src/c.c"]
    assert answer(lib, "overlay", "diff", entry, "--stat")["files"] == []
    lib.unmount()
    lib.mount()
    after = shown(top)
    assert {path: each[0] for path, each in after.items()} == {path: each[0] for path, each in before.items()}
    assert after["src/a.c"] == before["src/a.c"]
    lib.check_sound()


def test_edits_in_a_submodule_that_nobody_has_looked_into(bench: Bench) -> None:
    """What it has must be read in the background first. A `.git` is nothing that a patch could have."""
    outer = bench.repository("outer", {"README": "hello\n"})
    bench.repository("inner", {"in": "in\n"})
    bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../inner", "sub", cwd=outer)
    bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../inner", "two", cwd=outer)
    bench.git("commit", "-qm", "with submodules", cwd=outer)
    bench.write_toml('[workspace]\nname = "shop"\n\n[mounts."lib"]\ngit = "../outer"\n')
    bench.mount()
    (bench.live / "lib/sub/in").write_text("edited\n")
    bench.git("init", "-q", bench.live / "lib/sub/nested")
    bench.git("rm", "-q", "--cached", "two", cwd=bench.live / "lib")
    shutil.rmtree(bench.live / "lib/two")
    for words in (("diff", "lib", "--stat"), ("reset", "lib", "--dry-run"), ("diff", "lib")):
        bench.unmount()
        bench.mount()
        told = bench.cli("overlay", *words).stdout
        assert "sub/in" in told
        assert "two" in told
    assert ".git/" not in told


@pytest.mark.parametrize("entry", ["lib", "mod", "over"])
def test_what_is_ignored_is_no_part_of_a_patch(lib: Bench, entry: str) -> None:
    top = lib.live / entry
    (top / "new.py").write_text("import this\n")
    (top / "more").mkdir()
    (top / "more/.gitignore").write_text("*.log\n!__pycache__/\n")
    left = ["more/__pycache__/m.cpython-311.pyc", "more/a.log"]
    for name in left:
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(b"\0junk")
    before = shown(top)
    taken = ["more/.gitignore", "new.py"]
    diff = answer(lib, "overlay", "diff", entry, "--stat")
    assert ([each["path"] for each in diff["files"]], diff["ignored"]) == (taken, left)
    full = answer(lib, "overlay", "diff", entry, "--stat", "--ignored")
    assert ([each["path"] for each in full["files"]], full["ignored"]) == (sorted(taken + left), [])
    said = lib.cli("overlay", "export", entry, "-o", lib.base / "plain.patch")
    assert "2 new files left out" in said.stderr
    assert "cpython" not in (lib.base / "plain.patch").read_text()
    if entry != "over":
        done = answer(lib, "overlay", "export", entry, "-o", "patches/two.patch", "--as-layer")
        assert (done["files"], done["stay"], done["ignored"]) == (taken, [], left)
        assert shown(top) == before
        assert answer(lib, "overlay", "diff", entry, "--stat") == {"path": entry, "files": [], "ignored": left}
        nothing = answer(lib, "overlay", "export", entry, "-o", "patches/three.patch", "--as-layer")
        assert (nothing["file"], nothing["ignored"]) == (None, left)
        assert answer(lib, "overlay", "commit", entry, "-m", "m", "--dry-run")["ignored"] == left
    lib.check_sound()


def test_a_layer_needs_a_place(lib: Bench) -> None:
    edit(lib.live / "lib")
    changed = (lib.live / "lib/src/a.c").read_text().replace("patched 2", "mine 2")
    (lib.live / "lib/src/a.c").write_text(changed)
    before = shown(lib.live / "lib")

    def refused(file: object, *, entry: str = "lib") -> str:
        done = lib.cli("overlay", "export", entry, "-o", file, "--as-layer", check=False)
        assert done.returncode == 1
        return done.stderr

    assert "must lie in the workspace" in refused("../outside.patch")
    assert "lie in a mount entry" in refused("lib/in.patch")
    assert "there is such a file already" in refused("patches/one.patch")
    (lib.live / "over/one.txt").write_text("two\n")
    assert "a directory of this machine" in refused("patches/over.patch", entry="over")
    lib.write_toml((lib.root / "Clive.toml").read_text().replace('"patches/one.patch"', '"patches/*.patch"'))
    until(lambda: lib.entry("lib")["error"] is None, "the pattern")
    assert "would not be applied after the others" in refused("patches/before.patch")
    assert not (lib.root / "patches/before.patch").exists()
    assert shown(lib.live / "lib") == before
    answer(lib, "overlay", "export", "lib", "-o", "patches/two.patch", "--as-layer")
    assert 'patches = ["patches/*.patch"]' in (lib.root / "Clive.toml").read_text()
    assert shown(lib.live / "lib") == before
    lib.check_sound()


LAYER_POINTS = (
    "rebase.begun",
    "patch.rename",
    "rebase.patch",
    "rebase.config",
    "rebase.renamed",
    "rebase.lowered",
    "rebase.shown",
)


@pytest.mark.parametrize("point", LAYER_POINTS)
def test_a_crash_leaves_the_edits_or_the_layer(bench: Bench, point: str) -> None:
    write_lib(bench)
    bench.environment |= kill_at(bench.base / "faults", point)
    bench.mount()
    top = bench.live / "lib"
    edit(top)
    (top / "src").rename(top / "renamed")
    before, pid = shown(top), bench.daemon_pid()
    done = bench.cli("overlay", "export", "lib", "-o", "patches/two.patch", "--as-layer", check=False)
    assert done.returncode != 0
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the daemon")
    del bench.environment["CLIVEFS_TEST_KILL_AT"]
    bench.mount()
    assert shown(top) == before
    is_layer = (bench.root / "patches/two.patch").exists()
    assert set(os.listdir(bench.root / "patches")) == {"one.patch", *(["two.patch"] if is_layer else [])}
    assert ("two.patch" in (bench.root / "Clive.toml").read_text()) == is_layer
    assert bool(answer(bench, "overlay", "diff", "lib", "--stat")["files"]) != is_layer
    bench.cli("overlay", "export", "lib", "-o", "patches/three.patch", "--as-layer")
    assert shown(top) == before
    bench.check_sound(allowed="clearing the dead mount")


def test_commit_on_a_mounted_ref(lib: Bench) -> None:
    top = lib.live / "lib"
    edit(top)
    (top / "cache.pyc").write_text("junk")
    base = lib.git("rev-parse", "HEAD", cwd=top).strip()
    dry = answer(lib, "overlay", "commit", "lib", "-m", "Try", "--dry-run")
    assert lib.git("rev-parse", "HEAD", cwd=top).strip() == base
    done = answer(lib, "overlay", "commit", "lib", "-m", "Do it\n\nBecause.")
    assert done["files"] == dry["files"]
    assert done["ignored"] == ["cache.pyc"]
    assert done["branch"] == "main"
    assert lib.git("rev-parse", "HEAD", "HEAD~", cwd=top).split() == [done["commit"], base]
    assert lib.git("log", "-1", "--format=%an <%ae>%n%B", cwd=top).strip() == (
        "A U Thor <author@example.org>\nDo it\n\nBecause."
    )
    assert lib.git("status", "--porcelain", cwd=top) == ""
    assert "patched 2" in lib.git("show", "HEAD:src/a.c", cwd=top)
    entry = lib.entry("lib")
    assert (entry["ref"], entry["head"], entry["state"]) == (base, done["commit"], "mounted")
    again = lib.cli("overlay", "commit", "lib", "-m", "Again", check=False)
    assert "nothing to commit" in again.stderr
    # On a branch, and pushed with the user's git.
    remote = lib.base / "remote.git"
    lib.git("init", "-q", "--bare", "-b", "main", remote, cwd=lib.base)
    (top / "more").write_text("more\n")
    pushed = answer(lib, "overlay", "commit", "lib", "-m", "More", "--branch", "side", "--push", remote)
    assert lib.git("rev-parse", "side", cwd=remote).strip() == pushed["commit"]
    assert lib.git("status", "--porcelain", cwd=top) == "?? more\n"
    assert lib.git("rev-parse", "HEAD", cwd=top).strip() == done["commit"]
    elsewhere = lib.cli("overlay", "commit", "lib", "-m", "More", "--branch", "side", check=False)
    assert "side is at" in elsewhere.stderr
    lib.check_sound()


def test_commit_on_a_published_module(lib: Bench) -> None:
    top = lib.live / "mod"
    edit(top)
    done = answer(lib, "overlay", "commit", "mod", "-m", "First")
    (top / "new/file").write_text("again\n")
    second = answer(lib, "overlay", "commit", "mod", "-m", "Second")
    clone = lib.base / "clone"
    lib.git("clone", "-q", done["git_dir"], clone, cwd=lib.base)
    log = lib.git("log", "--format=%H %s", cwd=clone).splitlines()
    assert [line.partition(" ")[0] for line in log[:2]] == [second["commit"], done["commit"]]
    assert log[2].endswith("archive:../mod.zip")
    assert len(log) == 3
    lib.run(["diff", "-r", "--no-dereference", "--exclude=.git", clone, top])
    lib.git("checkout", "-q", "HEAD~2", cwd=clone)
    lib.run(["diff", "-r", "--no-dereference", "--exclude=.git", clone, lib.live / ".clive/base/mod"])
    lib.git("fsck", "--strict", cwd=clone)
    local = lib.cli("overlay", "commit", "over", "-m", "x", check=False)
    assert "a directory of this machine" in local.stderr
    lib.check_sound()


def test_converted_files_are_stored_as_git_stores_them(bench: Bench) -> None:
    thing = bench.repository("thing", {".gitattributes": "*.txt eol=crlf\n", "a.txt": "1\n2\n3\n", "b": "b\n"})
    bench.write_toml('[workspace]\nname = "shop"\n[mounts."lib"]\ngit = "../thing"\nref = "main"\n')
    bench.mount()
    lib = bench.live / "lib"
    (lib / "b").write_text("mine\n")
    answer(bench, "overlay", "commit", "lib", "-m", "b")
    assert (lib / "a.txt").read_bytes() == b"1\r\n2\r\n3\r\n"
    (lib / "a.txt").write_bytes(b"1\r\nmine\r\n3\r\n")
    assert bench.git("status", "--porcelain", cwd=lib) == " M a.txt\n"
    patch = bench.cli("overlay", "diff", "lib").stdout
    assert "\n-2\n+mine\n" in patch
    bench.run(["git", "apply", "--check"], cwd=thing, input=patch)
    answer(bench, "overlay", "commit", "lib", "-m", "a")
    assert bench.git("cat-file", "blob", "HEAD:a.txt", cwd=lib) == "1\nmine\n3\n"
    assert bench.git("status", "--porcelain", cwd=lib) == ""
    assert (lib / "a.txt").read_bytes() == b"1\r\nmine\r\n3\r\n"
    (lib / "a.txt").write_bytes(b"1\r\nmine\r\n4\r\n")
    bench.cli("overlay", "export", "lib", "-o", "x.patch", "--as-layer")
    assert (lib / "a.txt").read_bytes() == b"1\r\nmine\r\n4\r\n"
    assert "+4\n" in (bench.root / "x.patch").read_text()
    bench.check_sound()


def test_reset_says_what_it_forgot(lib: Bench) -> None:
    top = lib.live / "lib"
    before = shown(top)
    edit(top)
    dry = lib.cli("overlay", "reset", "lib", "src/a.c", "new", "--dry-run").stdout
    assert dry.splitlines() == [
        "would undo new (added)",
        "would undo new/file (added)",
        "would undo src/a.c (modified)",
    ]
    done = lib.cli("overlay", "reset", "lib", "src/a.c", "new").stdout
    assert done == dry.replace("would undo", "undid")
    assert not (top / "new").exists()
    none = lib.cli("overlay", "reset", "lib", "src/a.c", check=False)
    assert none.returncode == 1
    assert "there is no edit of yours at this path" in none.stderr
    lib.cli("overlay", "reset", "lib")
    after = shown(top)
    assert {path: each for path, each in after.items() if path != ".git"} == {
        path: each for path, each in before.items() if path != ".git"
    }
    assert lib.cli("overlay", "reset", "lib").stdout == "nothing to undo\n"
    lib.check_sound()


def test_what_forks_have_inherited_stays_theirs(lib: Bench) -> None:
    """Ignored files show through into a fork; forgetting them in the live view is a change like any other."""
    thing = lib.base / "thing"
    lib.git("tag", "v1", cwd=thing)
    write_files(thing, {"src/b.c": "int new;\n", "tracked.pyc": "of the release\n"})
    lib.git("add", "--force", "src/b.c", "tracked.pyc", cwd=thing)
    lib.git("commit", "-qm", "second", cwd=thing)
    lib.git("tag", "v2", cwd=thing)
    top, forks = lib.live / "lib", lib.live / ".clive/forks"
    write_files(top, {"one.pyc": "one\n", "deep/er/two.pyc": "two\n", "tracked.pyc": "mine\n"})
    ignored = {"one.pyc": "one\n", "deep/er/two.pyc": "two\n", "tracked.pyc": "mine\n"}

    def check(fork: str) -> None:
        assert {path: (forks / fork / "lib" / path).read_text() for path in ignored} == ignored

    lib.cli("fork", "before")
    lib.cli("overlay", "rebase", "lib", "--to", "v2", check=False)
    check("before")
    (top / "one.pyc").write_text("one more\n")
    ignored["one.pyc"] = "one more\n"
    ignored["tracked.pyc"] = (top / "tracked.pyc").read_text()
    lib.cli("fork", "between")
    lib.cli("overlay", "rebase", "lib", "--abort")
    check("between")
    ignored |= {"one.pyc": "one\n", "tracked.pyc": "mine\n"}
    check("before")
    lib.cli("fork", "after")
    lib.cli("overlay", "reset", "lib")
    assert not (top / "one.pyc").exists()
    check("after")
    check("before")
    lib.check_sound()


def test_blame(lib: Bench) -> None:
    edit(lib.live / "lib")
    (lib.live / "over/one.txt").write_text("one\ntwo\n")
    commit = "git:" + lib.git("rev-parse", "HEAD", cwd=lib.base / "thing").strip()
    lines = answer(lib, "blame", "lib/src/a.c")["lines"]
    assert [(each["first"], each["last"], each["layer"]) for each in lines] == [
        (1, 1, commit), (2, 2, "patch:patches/one.patch"), (3, 8, commit), (9, 9, "upper"), (10, 12, commit),
    ]  # fmt: skip
    assert answer(lib, "blame", "lib/bin.dat")["lines"] is None
    assert answer(lib, "blame", "own.txt")["files"] == [{"path": "", "layer": "local"}]
    local = answer(lib, "blame", "over/one.txt")["lines"]
    assert [each["layer"] for each in local] == ["local", "upper"]
    shown_lines = lib.cli("blame", "lib", "--changed").stdout.splitlines()
    assert ["upper", "src/c.c"] in [line.split() for line in shown_lines]
    assert all("upper" in line or "patch:" in line for line in shown_lines)
    for path, layer in {
        "lib/src/a.c": b"upper",
        "lib/.gitignore": commit.encode(),
        "mod/README": b"archive:../mod.zip",
        "data/one.txt": b"local",
        "own.txt": b"local",
    }.items():
        assert os.getxattr(lib.live / path, b"user.clive.layer") == layer
    missing = lib.cli("blame", "lib/none", check=False)
    assert missing.returncode == 1
    assert "there is no such file" in missing.stderr
    lib.check_sound()


def test_the_base_of_each_entry(lib: Bench) -> None:
    base = lib.live / ".clive/base"
    assert sorted(os.listdir(base)) == ["lib", "mod", "over"]
    assert not (base / "data").exists()
    edit(lib.live / "lib")
    assert (base / "lib/src/a.c").read_text() == LINES
    assert (base / "lib/README").read_text() == "hello\n"
    told = lib.run(["diff", "-ru", "--exclude=.git", ".clive/base/lib", "lib"], check=False)
    assert told.returncode == 1
    assert "-line 2\n+patched 2\n" in told.stdout
    assert "Only in .clive/base/lib: README" in told.stdout
    with pytest.raises(OSError, match="Read-only") as caught:
        (base / "lib/src/a.c").write_text("x")
    assert caught.value.errno == errno.EROFS
    for change in (lambda: (base / "mod/x").write_text("x"), lambda: (base / "over/one.txt").unlink()):
        with pytest.raises(OSError, match="Read-only"):
            change()
    with pytest.raises(PermissionError):
        (base / "x").mkdir()
    assert not (base / "lib/.git").exists()
    # It follows: the source, the entries, the directory.
    (lib.live / "over/one.txt").write_text("mine\n")
    assert (base / "over/one.txt").read_text() == "one\n"
    (lib.base / "data/one.txt").write_text("outside\n")
    until(lambda: (base / "over/one.txt").read_text() == "outside\n", "the change outside")
    thing = lib.base / "thing"
    write_files(thing, {"later": "later\n"})
    lib.git("add", "-A", cwd=thing)
    lib.git("commit", "-qm", "later", cwd=thing)
    lib.git("tag", "next", cwd=thing)
    lib.cli("overlay", "reset", "lib")
    lib.cli("overlay", "rebase", "lib", "--to", "next")
    assert (base / "lib/later").read_text() == "later\n"
    lib.cli("detach", "mod")
    assert sorted(os.listdir(base)) == ["lib", "over"]
    lib.cli("attach", "deep/down", f"git+{thing}@next")
    assert (base / "deep/down/later").read_text() == "later\n"
    lib.check_sound()


def test_replace_and_back_keeps_the_edits_of_each(lib: Bench) -> None:
    top = lib.live / "lib"
    edit(top)
    before = shown(top)
    copy = lib.base / "my-checkout"
    lib.git("clone", "-q", lib.base / "thing", copy, cwd=lib.base)
    lib.cli("replace", "lib", "../my-checkout")
    assert (top / "README").read_text() == "hello\n"
    (top / "README").write_text("in the checkout\n")
    assert (copy / "README").read_text() == "in the checkout\n"
    lib.cli("replace", "lib", "git+../thing@main")
    toml = (lib.root / "Clive.toml").read_text()
    if "patches" not in toml.partition('[mounts."mod"]')[0]:  # a through entry has none
        lib.write_toml(toml.replace('git = "../thing"\n', 'git = "../thing"\npatches = ["patches/one.patch"]\n'))
    until(lambda: "patched 2" in (top / "src/a.c").read_text(), "the patch")
    assert {path: each[0] for path, each in shown(top).items()} == {path: each[0] for path, each in before.items()}
    assert shown(top)["src/a.c"] == before["src/a.c"]
    lib.cli("replace", "lib", "../my-checkout")
    assert (top / "README").read_text() == "in the checkout\n"
    lib.check_sound()
