"""What needs the user's permission, and that permission is for exactly that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clivefs.mounts.config import trust
from clivefs.mounts.config.config import Workspace, parse
from clivefs.mounts.config.trust import StoreTrust
from clivefs.mounts.resolve import resolve_links
from clivefs.objects.memory import MemoryStore

ID = "0123456789abcdef"


@pytest.fixture
def permissions() -> StoreTrust:
    return StoreTrust(MemoryStore())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path.resolve() / "shop"
    found.mkdir()
    return found


def read(root: Path, text: str) -> Workspace:
    return parse(text, file="Clive.toml", root=str(root))


def asked(workspace: Workspace) -> list[tuple[str, str]]:
    return [(each.kind, each.path) for each in trust.requests(workspace)]


def test_what_stays_inside_or_on_the_network_needs_no_permission(root: Path) -> None:
    workspace = read(
        root,
        "[mounts.a]\nlocal = 'src'\n[mounts.b]\nlocal = 'missing/x'\n[mounts.c]\npypi = 'six==1'\n"
        "[mounts.d]\nnpm = 'a@1'\n[mounts.e]\narchive = 'https://h/x.tar'\n[mounts.f]\narchive = 'x.tar'\n"
        "[mounts.g]\ngit = 'https://h/x'\n[mounts.h]\ngit = '.'\n",
    )
    assert asked(workspace) == [("filters", "g"), ("filters", "h")]


def test_what_reaches_out_or_runs_something_does(root: Path) -> None:
    workspace = read(
        root,
        "[mounts.a]\nlocal = '../a'\n[mounts.b]\nlocal = '/b'\nwrite = 'none'\n[mounts.c]\narchive = 'file:///c.tar'\n"
        "[mounts.d]\ngit = '../d'\n[rules.r]\nrun = 'id'\ninputs = ['a']\noutputs = ['b']\n[services.s]\nrun = 'ls'\n",
    )
    wanted = [("mount", "a"), ("mount", "b"), ("filters", "d"), ("rule", "r")]
    assert asked(workspace) == [*wanted, ("service", "s")]
    assert [each.kind for each in trust.requests(workspace, script=b"x")][-1] == "script"


def test_allow(root: Path, permissions: StoreTrust) -> None:
    workspace = read(root, "[mounts.a]\nlocal = '../a'\n[mounts.b]\nlocal = '../b'\n[services.s]\nrun = 'ls'\n")
    assert trust.not_allowed(workspace, permissions, ID) == {
        "a": f"not allowed: it would show {root.parent}/a, outside the workspace, written through; "
        f"`clivefs allow {root}` permits it",
        "b": f"not allowed: it would show {root.parent}/b, outside the workspace, written through; "
        f"`clivefs allow {root}` permits it",
    }
    assert [each.path for each in trust.allow(workspace, permissions, ID, only=["a"])] == ["a"]
    assert list(trust.not_allowed(workspace, permissions, ID)) == ["b"]
    assert list(trust.not_allowed(workspace, permissions, ID, kind="service")) == ["s"]
    assert [each.path for each in trust.allow(workspace, permissions, ID)] == ["b", "s"]
    assert trust.allow(workspace, permissions, ID) == ()
    assert trust.not_allowed(workspace, permissions, ID) == {}
    assert trust.not_allowed(workspace, permissions, ID, kind="service") == {}
    assert list(trust.not_allowed(workspace, permissions, "f" * 16)) == ["a", "b"], "another workspace"


@pytest.mark.parametrize(
    "change",
    [
        "[mounts.a]\nlocal = '../b'\nwrite = 'none'",
        "[mounts.a]\nlocal = '../a'\nwrite = 'through'",
        "[mounts.b]\nlocal = '../a'\nwrite = 'none'",
        "[mounts.a]\nlocal = '../c'\nwrite = 'none'",
    ],
)
def test_a_change_asks_anew(root: Path, permissions: StoreTrust, change: str) -> None:
    text = "[mounts.a]\nlocal = '../a'\nwrite = 'none'\n"
    trust.allow(read(root, text), permissions, ID)
    assert trust.not_allowed(read(root, f"# more\n\n{text}[mounts.z]\npypi = 'six==1'"), permissions, ID) == {}
    assert len(trust.not_allowed(read(root, change), permissions, ID)) == 1


def test_a_changed_command_asks_anew(root: Path, permissions: StoreTrust) -> None:
    text = "[rules.r]\nrun = 'id'\ninputs = ['a']\noutputs = ['b']\n[services.s]\nrun = 'ls'\n"
    trust.allow(read(root, text), permissions, ID, script=b"1")
    for kind, other in (("rule", text.replace("'id'", "'rm x'")), ("service", text.replace("'ls'", "'rm x'"))):
        assert trust.not_allowed(read(root, text), permissions, ID, kind=kind) == {}  # type: ignore[arg-type]
        assert len(trust.not_allowed(read(root, other), permissions, ID, kind=kind)) == 1  # type: ignore[arg-type]
    assert trust.not_allowed(read(root, text), permissions, ID, kind="script", script=b"1") == {}
    assert list(trust.not_allowed(read(root, text), permissions, ID, kind="script", script=b"2")) == ["clive.py"]


def test_a_link_that_leads_out_is_outside_and_asks_anew_when_turned(root: Path, permissions: StoreTrust) -> None:
    (root / "in").mkdir()
    link = root / "link"
    link.symlink_to("in")
    workspace = read(root, "[mounts.a]\nlocal = 'link/x'\n")
    assert trust.not_allowed(workspace, permissions, ID) == {}
    link.unlink()
    link.symlink_to("../elsewhere")
    assert "elsewhere/x, outside the workspace" in trust.not_allowed(workspace, permissions, ID)["a"]
    trust.allow(workspace, permissions, ID)
    assert trust.not_allowed(workspace, permissions, ID) == {}
    link.unlink()
    link.symlink_to("/etc")
    assert "/etc/x" in trust.not_allowed(workspace, permissions, ID)["a"]


def test_filters(root: Path, permissions: StoreTrust) -> None:
    workspace = read(root, "[mounts.a]\ngit = 'https://h/x'\n")
    assert not trust.filters_allowed(workspace.mounts[0], permissions, ID)
    trust.allow(workspace, permissions, ID)
    assert trust.filters_allowed(workspace.mounts[0], permissions, ID)
    other = read(root, "[mounts.a]\ngit = 'https://h/y'\n")
    assert not trust.filters_allowed(other.mounts[0], permissions, ID)


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(root: Path, permissions: StoreTrust) -> None:
    (root / "link").symlink_to("../x\x1b[31m")
    reasons = trust.not_allowed(read(root, "[mounts.a]\nlocal = 'link'\n"), permissions, ID)
    assert "\x1b" not in reasons["a"]


def test_own(permissions: StoreTrust) -> None:
    assert not trust.is_own(permissions, ID)
    trust.mark_own(permissions, ID)
    assert trust.is_own(permissions, ID)
    assert not trust.is_own(permissions, "f" * 16)


def test_resolve_links_is_realpath(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    (base / "dir" / "sub").mkdir(parents=True)
    (base / "file").write_text("")
    (base / "abs").symlink_to(base / "dir")
    (base / "rel").symlink_to("dir/sub")
    (base / "up").symlink_to("dir/sub/..")
    (base / "dir" / "chain").symlink_to("../abs/../rel")
    (base / "dangling").symlink_to("nowhere/x")
    (base / "root").symlink_to("/")
    (base / os.fsdecode(b"\xff")).symlink_to("dir")
    for path in ("", "dir", "abs/sub", "rel/../chain", "up/sub", "dangling/y", "nothing/../dir", "file/x", "root/tmp"):
        assert resolve_links(f"{base}/{path}") == os.path.realpath(f"{base}/{path}"), path
    assert resolve_links(f"{base}/" + os.fsdecode(b"\xff")) == f"{base}/dir"
    assert resolve_links("/") == "/"
    (base / "loop").symlink_to("loop")
    assert resolve_links(f"{base}/loop/x") == f"{base}/loop/x"
    deep = "/".join("d" * 200 for _ in range(30))
    assert resolve_links(f"{base}/{deep}") == f"{base}/{deep}"
