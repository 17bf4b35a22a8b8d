"""A mounted ref shows what a checkout would: conversions, submodules; whatever the user's own git is set to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Bench, write_files

pytestmark = pytest.mark.mount


@pytest.fixture
def origin(bench: Bench) -> Path:
    path = bench.repository("thing", {"README": "hello\n", "src/a.c": "int a;\n"})
    bench.git("tag", "v1", cwd=path)
    return path


def mount(bench: Bench, more: str = "") -> Path:
    bench.write_toml(f'[workspace]\nname = "shop"\n\n[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n{more}')
    bench.mount()
    return bench.live / "lib/thing"


def test_submodules_do_not_confuse_git(bench: Bench, origin: Path) -> None:
    bench.repository("inner", {"in": "in\n"})
    bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../inner", "sub", cwd=origin)
    bench.git("commit", "-qm", "with a submodule", cwd=origin)
    with (origin / ".gitmodules").open("a") as file:
        file.write('[submodule "gone"]\n\tpath = gone\n\turl = ../not-there\n')
    bench.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},gone", cwd=origin)
    bench.git("add", ".gitmodules", cwd=origin)
    bench.git("commit", "-qm", "and one that cannot be had", cwd=origin)
    tree = mount(bench)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert (tree / "sub/in").read_text() == "in\n"
    assert os.listdir(tree / "gone") == []
    assert "submodule" in os.getxattr(tree / "gone", "user.clive.layer").decode()
    (tree / "README").write_text("x\n")
    (tree / "new").write_text("x\n")
    bench.git("add", "-A", cwd=tree)
    bench.git("commit", "-qm", "beside a submodule", cwd=tree)
    assert bench.git("ls-tree", "HEAD", "sub", "gone", cwd=tree).count("160000 commit") == 2
    bench.git("switch", "-q", "--detach", "v1", cwd=tree)
    bench.git("switch", "-q", "main", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_submodules_become_working_trees_when_git_is_asked_to(bench: Bench, origin: Path) -> None:
    """What the mount shows of a submodule is files without a `.git`; `git submodule update` gives it one."""
    inner = bench.repository("inner", {"in": "in\n", "d/x": "x\n"})
    bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "--name", "one", "../inner", "sub",
              cwd=origin)  # fmt: skip
    bench.git("commit", "-qm", "with a submodule", cwd=origin)
    tree = mount(bench)
    assert sorted(os.listdir(tree / "sub")) == ["d", "in"]
    bench.git("submodule", "--quiet", "update", "--init", cwd=tree)
    assert bench.git("submodule", "status", cwd=tree).startswith(" ")
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert bench.git("rev-parse", "HEAD", cwd=tree / "sub") == bench.git("rev-parse", "HEAD", cwd=inner)
    assert bench.git("remote", "get-url", "origin", cwd=tree / "sub").strip() == str(inner)
    (tree / "sub/in").write_text("edited\n")
    bench.git("commit", "-qam", "inside", cwd=tree / "sub")
    assert bench.git("status", "--porcelain", cwd=tree) == " M sub\n"
    bench.git("commit", "-qam", "a newer submodule", cwd=tree)
    bench.unmount()
    bench.mount()
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    bench.git("fsck", "--strict", cwd=tree / "sub")
    bench.check_sound()


def test_submodules_are_found_from_another_mountpoint(bench: Bench, origin: Path) -> None:
    """Also one in a submodule, and one that the user has cloned himself; git can still take them away and make them."""
    allow = ("-c", "protocol.file.allow=always")
    bench.repository("inmost", {"i": "i\n"})
    inner = bench.repository("inner", {"in": "in\n"})
    own = bench.repository("own", {"own": "own\n"})
    bench.git(*allow, "submodule", "--quiet", "add", "../inmost", "deep", cwd=inner)
    bench.git("commit", "-qm", "a submodule", cwd=inner)
    bench.git(*allow, "submodule", "--quiet", "add", "--name", "a/name", "../inner", "ext/sub", cwd=origin)
    bench.git("commit", "-qm", "with a submodule", cwd=origin)
    tree = mount(bench)
    assert (tree / "ext/sub/deep/i").read_text() == "i\n"
    bench.git(*allow, "submodule", "--quiet", "update", "--init", "--recursive", cwd=tree)
    bench.git(*allow, "submodule", "--quiet", "add", str(own), "mine", cwd=tree)
    before = bench.git("status", "--porcelain", cwd=tree).splitlines()
    assert before == ["M  .gitmodules", "A  mine"]
    (tree / "ext/sub/in").write_text("edited\n")
    bench.unmount()
    bench.mountpoint = bench.base / "else" / "where" / "deeper"
    bench.mount()
    tree = bench.live / "lib/thing"
    assert set(bench.git("status", "--porcelain", cwd=tree).splitlines()) == {*before, " M ext/sub"}
    for sub, commit in (("ext/sub", inner), ("mine", own)):
        assert bench.git("rev-parse", "--show-toplevel", cwd=tree / sub).strip() == str(tree / sub)
        assert bench.git("rev-parse", "HEAD", cwd=tree / sub) == bench.git("rev-parse", "HEAD", cwd=commit)
    assert bench.git("status", "--porcelain", cwd=tree / "ext/sub/deep") == ""
    assert bench.git("submodule", "status", "--recursive", cwd=tree).count("\n") == 3
    bench.git("commit", "-qam", "inside", cwd=tree / "ext/sub")
    bench.git("submodule", "--quiet", "deinit", "--force", "ext/sub", cwd=tree)
    bench.git(*allow, "submodule", "--quiet", "update", "--init", cwd=tree)
    bench.unmount()
    bench.mountpoint = bench.base / "third"
    bench.mount()
    tree = bench.live / "lib/thing"
    assert (tree / "ext/sub/in").read_text() == "in\n"
    assert bench.git("submodule", "status", cwd=tree).count("\n") == 2
    assert bench.git("status", "--porcelain", cwd=tree).splitlines() == before
    bench.check_sound()


def test_line_endings_and_ident_give_what_a_checkout_gives(bench: Bench) -> None:
    path = bench.repository(
        "thing",
        {
            ".gitattributes": "*.txt text\n*.bat text eol=crlf\n*.id ident\n*.bin -text\n"
            "*.u16 working-tree-encoding=UTF-16LE eol=lf\n",
            "a.txt": "one\ntwo\n",
            "b.bat": "one\r\ntwo\r\n",
            "c.id": "$Id$\nrest\n",
            "e.bin": b"\r\n\0\n",
            "sub/.gitattributes": "*.sh text eol=crlf\n",
            "sub/d.sh": "echo\r\n",
        },
    )
    write_files(path, {"d.u16": "wide\n".encode("utf-16-le")})
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-qm", "wide", cwd=path)
    bench.git("clone", "-q", str(path), "plain", cwd=bench.base)
    tree = mount(bench)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    for name in bench.git("ls-files", "-z", cwd=tree).split("\0")[:-1]:
        assert (tree / name).read_bytes() == (bench.base / "plain" / name).read_bytes(), name
        assert (tree / name).stat().st_size == (bench.base / "plain" / name).stat().st_size
    bench.run("touch b.bat sub/d.sh c.id d.u16", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_lfs_pointers_are_shown_as_they_are(bench: Bench) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"
    path = bench.repository("thing", {"big.bin": pointer})
    write_files(path, {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-qm", "attributes", cwd=path)
    tree = mount(bench)
    assert (tree / "big.bin").read_text() == pointer
    assert bench.git("status", "--porcelain", cwd=tree) == ""


@pytest.mark.parametrize("option", ["autocrlf = true", "autocrlf = input", "eol = crlf", "symlinks = false"])
def test_the_users_own_conversions_change_nothing(bench: Bench, option: str) -> None:
    """What a ref shows is the same for all of its users, and git in it agrees."""
    path = bench.repository(
        "thing",
        {".gitattributes": "*.t text\n*.auto text=auto\n", "unix": "a\nb\n", "dos": "a\r\nb\r\n", "x.t": "a\nb\n"},
    )
    write_files(path, {"y.auto": "a\nb\n", "sub/z.auto": "a\nb\n"})
    (path / "link").symlink_to("unix")
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-qm", "more", cwd=path)
    (bench.home / ".gitconfig").write_text(f"[core]\n\t{option}\n\tsafecrlf = true\n")
    tree = mount(bench)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    for name in ("unix", "x.t", "y.auto", "sub/z.auto"):
        assert (tree / name).read_bytes() == b"a\nb\n"
    assert (tree / "dos").read_bytes() == b"a\r\nb\r\n"
    bench.run("touch unix dos x.t y.auto sub/z.auto", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    bench.git("switch", "-q", "--detach", "HEAD~1", cwd=tree)
    bench.git("switch", "-q", "main", cwd=tree)
    assert (tree / "y.auto").read_bytes() == b"a\nb\n"
    assert os.readlink(tree / "link") == "unix"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    (tree / "unix").write_bytes(b"a\r\nb\n")
    bench.git("commit", "-qam", "as written", cwd=tree)
    assert bench.run("git show HEAD:unix | od -An -c", cwd=tree).stdout.split() == ["a", "\\r", "\\n", "b", "\\n"]


def test_submodules_in_submodules(bench: Bench, origin: Path) -> None:
    for name, inner in (("inner", None), ("middle", "inner")):
        path = bench.repository(name, {f"{name}.txt": f"{name}\n"})
        if inner is not None:
            bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", f"../{inner}", "i", cwd=path)
            bench.git("commit", "-qm", "with a submodule", cwd=path)
    bench.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../middle", "m", cwd=origin)
    bench.git("commit", "-qm", "with a submodule", cwd=origin)
    tree = mount(bench)
    assert (tree / "m/i/inner.txt").read_text() == "inner\n"
    assert (tree / "m/middle.txt").read_text() == "middle\n"
    assert os.getxattr(tree / "m/i/inner.txt", "user.clive.layer").startswith(b"submodule:")
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    (tree / "m/i/inner.txt").write_text("edited\n")
    assert (tree / "m/i/inner.txt").read_text() == "edited\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""  # git does not look into what has no `.git`
    bench.check_sound()


@pytest.mark.parametrize("write", ["through", "overlay"])
def test_the_index_of_a_local_checkout_is_as_true_in_the_mount(bench: Bench, write: str) -> None:
    """git compares size, times and the low 32 bits of the inode number; where one differs, it reads the file again."""
    path = bench.repository("thing", {f"d{number % 3}/f{number}": f"{number}\n" for number in range(30)})
    bench.write_toml(f'[workspace]\nname = "shop"\n\n[mounts."lib/thing"]\nlocal = "../thing"\nwrite = "{write}"\n')
    bench.mount()
    tree = bench.live / "lib/thing"
    for name in bench.git("ls-files", cwd=path).split():
        outside, inside = (path / name).stat(), (tree / name).stat()
        assert inside.st_ino & 0xFFFFFFFF == outside.st_ino & 0xFFFFFFFF
        assert (inside.st_size, inside.st_mtime_ns, inside.st_ctime_ns) == (
            outside.st_size,
            outside.st_mtime_ns,
            outside.st_ctime_ns,
        )
        assert (inside.st_uid, inside.st_gid, inside.st_mode) == (outside.st_uid, outside.st_gid, outside.st_mode)
    assert bench.git("diff-files", cwd=tree) == ""  # which never reads: a stat that differs is a line
