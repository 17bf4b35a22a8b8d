"""The scripts of a clone: what a second run costs, what `mount` without a workspace does, and the lock."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "scripts" / name for name in ("clivefs", "test", "lock", "lib/setup.sh")] + [ROOT / ".ci" / "run"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose environment is set up, with a clivefs that prints how it was called."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    (clone / "examples").mkdir()
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, clone / name)
    binaries = clone / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    program = binaries / "clivefs"
    program.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    program.chmod(0o755)
    stamp = (
        f"{clone}\n{Path(sys.executable).resolve()}\n"
        + (clone / "requirements.lock").read_text()
        + (clone / "pyproject.toml").read_text()
    )
    (clone / ".venv" / ".clivefs-setup").write_text(stamp)
    return clone


def _run(clone: Path, *words: str, cwd: Path, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(clone.parent)}
    return subprocess.run(
        [clone / "scripts" / "clivefs", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
    assert script.parent.name == "lib" or os.access(script, os.X_OK)


def test_a_second_run_only_starts_clivefs(clone: Path, tmp_path: Path) -> None:
    """Nothing that could ask the network or the package manager is even looked for."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cmp", "dirname", "id", "readlink"):
        (tools / name).symlink_to(shutil.which(name) or name)
    result = _run(clone, "status", "--json", cwd=tmp_path, path=str(tools))
    assert (result.returncode, result.stdout, result.stderr) == (0, "status\n--json\n", "")


@pytest.mark.parametrize("line, is_now", [(0, "/elsewhere"), (1, "/usr/bin/python3.10"), (2, "")])
def test_another_place_python_or_lock_is_set_up_again(clone: Path, tmp_path: Path, line: int, is_now: str) -> None:
    """An upgrade of the distribution puts another Python under the same name."""
    stamp = clone / ".venv" / ".clivefs-setup"
    lines = stamp.read_text().split("\n")
    lines[line] = is_now
    stamp.write_text("\n".join(lines))
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cmp", "dirname", "id", "sed", "readlink"):
        (tools / name).symlink_to(shutil.which(name) or name)
    result = _run(clone, "status", cwd=tmp_path, path=str(tools))
    assert (result.returncode, result.stdout) == (1, "")
    assert "this machine lacks" in result.stderr


@pytest.mark.parametrize("words", [[], ["--at", "/x"], ["--store=/y", "--foreground"]])
def test_mount_of_nothing_mounts_the_example(clone: Path, tmp_path: Path, words: list[str]) -> None:
    result = _run(clone, "mount", *words, cwd=tmp_path)
    assert result.stdout.split() == ["mount", str(clone / "examples"), "--allow", *words]
    assert "example" in result.stderr
    assert f"alias clivefs='{clone}/scripts/clivefs'" in result.stderr, "what it tells to try can be typed"


@pytest.mark.parametrize(
    "words", [["mount", "dir"], ["mount", "--help"], ["mount", "--at", "/x", "dir"], ["status"], []]
)
def test_other_calls_are_passed_on(clone: Path, tmp_path: Path, words: list[str]) -> None:
    assert _run(clone, *words, cwd=tmp_path).stdout.split() == words


def test_mount_in_a_workspace_mounts_it(clone: Path, tmp_path: Path) -> None:
    deep = tmp_path / "shop" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "shop" / "Clive.toml").touch()
    assert _run(clone, "mount", cwd=deep).stdout == "mount\n"


def test_without_a_package_manager_it_says_what_to_install(clone: Path, tmp_path: Path) -> None:
    shutil.rmtree(clone / ".venv")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cmp", "dirname", "id", "sed", "readlink"):
        (tools / name).symlink_to(shutil.which(name) or name)
    result = _run(clone, "mount", cwd=tmp_path, path=str(tools))
    assert result.returncode == 1
    for word in ("fusermount3", "pkg-config", "C compiler", "git", "no apt-get"):
        assert word in result.stderr


def test_the_lock_holds_names_versions_and_hashes_only() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    requirements = [line for line in text.splitlines() if line and line[0] not in " #"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+!]+( ; [\w .<>='\"]+)? \\", line) for line in requirements)
    hashes = [line.strip(" \\") for line in text.splitlines() if line.startswith(" ")]
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes)


def test_the_lock_has_everything_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {re.split(r"[<>=!~]", each)[0] for each in (*project["dependencies"], *extras["dev"], *extras["build"])}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {each.replace(".", "-") for each in named} <= locked


@pytest.mark.network
def test_a_fresh_clone_sets_itself_up(tmp_path: Path) -> None:
    """From nothing to a clivefs that runs; two at once do not get in each other's way."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("clivefs", "scripts"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone / name)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    # What is made here runs once: it is not worth optimising nor compiling to bytecode.
    quick = {"CFLAGS": "-O0", "PIP_NO_COMPILE": "1"}
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), **pip, **quick}
    both = [
        subprocess.Popen(
            [clone / "scripts" / "clivefs", "--version"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert all(out.startswith("clivefs ") for out, _ in said)
    assert sum("installing the Python packages" in err for _, err in said) == 1
