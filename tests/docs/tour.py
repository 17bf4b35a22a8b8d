"""Runs the console blocks of a Markdown file in one shell, and says what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIES = [
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d{3}(Z|\b)"), "TIME"),
    (re.compile(r"\b[0-9a-f]{7,40}\b"), "HASH"),
    (re.compile(r"process \d+, (native|pyfuse3)"), "process N, TRANSPORT"),
    # Said where it takes long, as on a slow machine.
    (re.compile(r"^the last changes are being recorded; .*\n", re.MULTILINE), ""),
]


class Step(NamedTuple):
    """One command and the lines below it."""

    command: str
    output: str


def steps(markdown: str) -> list[list[Step]]:
    """The commands of each console block."""
    return [list(_steps_of(block)) for block in _BLOCK.findall(markdown)]


def _steps_of(block: str) -> Iterator[Step]:
    command, output = "", ""
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield Step(command, output)
            command, output = line[2:].rstrip("\n"), ""
        else:
            output += line
    if command:
        yield Step(command, output)


def normal(text: str) -> str:
    """*text* without what differs from run to run."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


class Shell:
    """One bash that keeps its directory from command to command, with a home and a `clivefs` of its own."""

    def __init__(self, home: Path) -> None:
        programs = home.parent / "programs"
        programs.mkdir()
        (programs / "clivefs").write_text(f'#!/bin/sh\nexec {sys.executable} -m clivefs.cli "$@"\n')
        (programs / "clivefs").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "CLIVEFS_", "XDG_"))}
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **kept,
                "HOME": str(home),
                "PATH": f"{programs}:{os.environ['PATH']}",
                "LC_ALL": "C.UTF-8",
                "COLUMNS": "100",
                "GIT_AUTHOR_NAME": "You",
                "GIT_AUTHOR_EMAIL": "you@example.org",
                "GIT_COMMITTER_NAME": "You",
                "GIT_COMMITTER_EMAIL": "you@example.org",
            },
        )

    def run(self, command: str) -> str:
        """What *command* prints, standard error included."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = uuid.uuid4().hex
        self._process.stdin.write(f"{command}\necho {mark}\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if line.endswith(mark + "\n"):
                lines.append(line.removesuffix(mark + "\n"))
                break
            lines.append(line)
        return "".join(lines)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def rewritten(markdown: str, home: Path) -> str:
    """*markdown* with what the commands really print."""
    shell = Shell(home)
    try:

        def block(match: re.Match[str]) -> str:
            lines = []
            for step in _steps_of(match[1]):
                printed = shell.run(step.command).replace(str(home), "/home/you")
                lines.append(f"$ {step.command}\n{printed}")
            return "```console\n" + "".join(lines) + "```"

        return _BLOCK.sub(block, markdown)
    finally:
        shell.run("cd; clivefs unmount")
        shell.close()
