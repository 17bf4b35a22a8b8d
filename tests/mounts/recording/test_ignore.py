"""The ignore rules against stock git's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clivefs.mounts.recording.ignore import Exclude, Patterns, Rules
from tests.mounts.recording.worlds import ENVIRONMENT

PATHS = [
    b"a", b"b", b"foo", b"foo.o", b"fo]o", b"x y", b"x ", b"#hash", b"!bang", b"\xe9t\xe9", b"a-b", b"Z", b"0",
    b"d/a", b"d/foo", b"d/foo.o", b"d/foox/a", b"d/e/a", b"d/e/foo.o", b"d/e/f/a", b"d/e/f/foo",
    b"foo.d/a", b"foo.d/e/foo", b"back\\slash", b"d/x-y/foo",
]  # fmt: skip
PIECES = [
    b"*", b"**", b"**/", b"/**", b"/", b"?", b"a", b"b", b"d", b"e", b"f", b"foo", b".o", b"x", b"\\", b"\\*", b"[",
    b"]",    b"[a-f]", b"[!a]", b"[^d]", b"[]-]", b"[a-", b"[[:alpha:]]", b"[[:digit:]x]", b"[[:nope:]]", b"[\\]a]",
    b"[/a]",    b" ",    b"\\ ", b"!", b"#", b"-", b"\xe9", b"\r", b"**o", b"\\/",
]  # fmt: skip

lines = st.builds(
    lambda negative, slash, body, end: negative + slash + b"".join(body) + end,
    st.sampled_from([b"", b"", b"", b"!"]),
    st.sampled_from([b"", b"", b"/"]),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6),
    st.sampled_from([b"", b"", b"/", b" "]),
)
files = st.lists(lines, max_size=6).map(b"\n".join)


def ignored_by_git(root: Path, paths: list[bytes]) -> set[bytes]:
    done = subprocess.run(
        ["git", "check-ignore", "-z", "--no-index", "--stdin"],
        cwd=root, env=ENVIRONMENT, input=b"\0".join(paths), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.split(b"\0")) - {b""}


def ignored_by_us(contents: dict[bytes, bytes], info_exclude: bytes, paths: list[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for path in paths:
        rules = Rules.at_root(Exclude(b""), b"", info_exclude, contents.get(b""))
        parts = path.split(b"/")
        for depth, name in enumerate(parts, 1):
            if rules.ignores(name, depth < len(parts)):
                found.add(path)
                break
            rules = rules.enter(name, contents.get(b"/".join(parts[:depth])))
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ignore")
    subprocess.run(["git", "init", "-q", "."], cwd=root, env=ENVIRONMENT, check=True)
    for path in PATHS:
        place = os.fsencode(root) + b"/" + path
        os.makedirs(os.path.dirname(place), exist_ok=True)
        Path(os.fsdecode(place)).touch()
    return root


@settings(max_examples=150, deadline=None)
@given(files, files, files, files)
@example(b"d/foo**", b"", b"", b"")
@example(b"d/fo**/a", b"", b"", b"")
@example(b"**/e/**/foo", b"!foo", b"foo\\ ", b"*.o\r\n")
@example(b"\xef\xbb\xbfa\n/d/*\n!/d/e", b"", b"", b"")
@example(b"/*\n!/d\n/d/*\n!/d/foo", b"", b"", b"")
@example(b"x \nx\\ ", b"", b"", b"foo")
@example(b"d/**\\/a", b"", b"", b"")
def test_as_git_check_ignore(repository: Path, top: bytes, inner: bytes, deep: bytes, info: bytes) -> None:
    (repository / ".gitignore").write_bytes(top)
    (repository / "d" / ".gitignore").write_bytes(inner)
    (repository / "d" / "e" / ".gitignore").write_bytes(deep)
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "exclude").write_bytes(info)
    contents = {b"": top, b"d": inner, b"d/e": deep}
    assert ignored_by_us(contents, info, PATHS) == ignored_by_git(repository, PATHS)


def test_sessions_exclude_goes_before_everything_and_reaches_into_parts() -> None:
    exclude = Exclude(b"*.tmp\n/lib/part/only\n")
    rules = Rules.at_root(exclude, b"lib/part/", b"*.log", b"!*.tmp\n!*.log")
    assert rules.ignores(b"a.tmp", False)
    assert rules.ignores(b"only", False)
    assert not rules.ignores(b"a.log", False)
    below = rules.enter(b"d", b"!*.tmp\nx")
    assert below.ignores(b"a.tmp", False)
    assert below.ignores(b"x", True)
    assert not below.ignores(b"only", False)


@pytest.mark.parametrize(
    "pattern",
    [
        b"*a" * 60 + b"b",
        b"**/" + b"**/a/" * 40 + b"b",
        b"x/" + b"*a*/" * 30 + b"b",
        b"[a-z]*" * 50 + b"!",
        b"a**" * 60 + b"b",
    ],
)
def test_no_pattern_takes_long(pattern: bytes) -> None:
    # With a backtracking matcher these would not end in this life.
    patterns = Patterns(pattern)
    assert patterns.decide(b"x/" + b"aaa/a/" * 200, b"a" * 250, False) is None
