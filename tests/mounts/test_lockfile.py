"""Clive.lock: stable text, strict reading, and errors that name both digests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config import lockfile
from clivefs.mounts.config.lockfile import Lock, Locked

TREE = "ab" * 20
SIX = Locked("pypi:six==1.16.0", TREE, version="1.16.0", sha256="cd" * 32)
LEFT_PAD = Locked("npm:left-pad@1.3.0", TREE, version="1.3.0", sha256="ef" * 32, integrity="sha512-AAAA==")
REQUESTS = Locked("git+https://example.org/requests.git@main", TREE, commit="12" * 20)
TEXT = f"""\
# Written by `clivefs lock`: what the entries of Clive.toml were then. Commit it beside Clive.toml.
version = 1

[mounts."lib/requests"]
source = "git+https://example.org/requests.git@main"
tree = "{TREE}"
commit = "{"12" * 20}"

[mounts."vendor/left-pad"]
source = "npm:left-pad@1.3.0"
tree = "{TREE}"
version = "1.3.0"
sha256 = "{"ef" * 32}"
integrity = "sha512-AAAA=="

[mounts."vendor/six"]
source = "pypi:six==1.16.0"
tree = "{TREE}"
version = "1.16.0"
sha256 = "{"cd" * 32}"
"""
ENTRIES = {"vendor/six": SIX, "lib/requests": REQUESTS, "vendor/left-pad": LEFT_PAD}


def test_the_text_is_sorted_and_reads_back(tmp_path: Path) -> None:
    assert lockfile.write(str(tmp_path), Lock("", ENTRIES))
    assert (tmp_path / "Clive.lock").read_text() == TEXT
    assert lockfile.read(str(tmp_path)).entries == ENTRIES
    assert not lockfile.write(str(tmp_path), Lock("", dict(reversed(ENTRIES.items()))))
    assert lockfile.write(str(tmp_path), Lock("", {"vendor/six": SIX}))
    assert lockfile.read(str(tmp_path)).entries == {"vendor/six": SIX}
    assert os.listdir(tmp_path) == ["Clive.lock"]


def test_no_file_is_an_empty_lock(tmp_path: Path) -> None:
    lock = lockfile.read(str(tmp_path))
    assert lock == Lock(str(tmp_path / "Clive.lock"), {})
    with pytest.raises(ClivefsError):
        lockfile.read(str(tmp_path / "missing"))


def test_an_entry_counts_while_its_source_is_the_same() -> None:
    lock = Lock("", ENTRIES)
    assert lock.entry("vendor/six", "pypi:six==1.16.0") == SIX
    assert lock.entry("vendor/six", "pypi:six==1.17.0") is None
    assert lock.entry("other", "pypi:six==1.16.0") is None


def test_locking_anew_keeps_what_was_not_looked_at_and_drops_what_is_gone() -> None:
    newer = SIX._replace(sha256="00" * 32)
    lock = Lock("f", ENTRIES).updated({"vendor/six": newer}, ["vendor/six", "lib/requests", "not/locked"])
    assert lock == Lock("f", {"vendor/six": newer, "lib/requests": REQUESTS})


@pytest.mark.parametrize("key", ["sha256", "tree", "commit", "integrity"])
def test_a_difference_names_both_digests(key: str) -> None:
    locked = Locked("x", TREE, sha256="1" * 64, integrity="sha512-A", commit="2" * 40)
    lockfile.verify("lib/x", locked, locked)
    other = "9" * len(getattr(locked, key))
    with pytest.raises(ClivefsError) as caught:
        lockfile.verify("lib/x", locked, locked._replace(**{key: other}), file="/w/Clive.lock")
    text = str(caught.value)
    for part in (getattr(locked, key), other, "/w/Clive.lock", "lib/x", "clivefs lock"):
        assert part in text


def test_what_one_side_does_not_say_is_not_compared() -> None:
    lockfile.verify("x", SIX, SIX._replace(integrity="sha512-A"))


@pytest.mark.parametrize(
    "text, why",
    [
        ("version = 2", "format 2"),
        ("version = 99\nmounts = 3", "format 99"),
        ("", "no `version`"),
        ("version = '1'", "no `version`"),
        ("version = true", "no `version`"),
        ("version = ", "no TOML"),
        ("version = 1\nmounts = 3", "no table"),
        ("version = 1\n[mounts]\na = 1", "no table"),
        (f"version = 1\n[mounts.a]\ntree = '{TREE}'", "no `source`"),
        ("version = 1\n[mounts.a]\nsource = 'x'", "no `tree`"),
        ("version = 1\n[mounts.a]\nsource = 'x'\ntree = 'abc'", "40 hexadecimal"),
        (f"version = 1\n[mounts.a]\nsource = 3\ntree = '{TREE}'", "not a string"),
        (f"version = 1\n[mounts.a]\nsource = 'x'\ntree = '{TREE}'\nsha256 = 'zz'", "64 hexadecimal"),
    ],
)
def test_what_cannot_be_a_lock_is_said_and_not_written_over(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "Clive.lock").write_text(text)
    for act in (lambda: lockfile.read(str(tmp_path)), lambda: lockfile.write(str(tmp_path), Lock("", ENTRIES))):
        with pytest.raises(ClivefsError, match=why) as caught:
            act()
        assert caught.value.place == str(tmp_path / "Clive.lock")
        assert caught.value.remedy
    assert (tmp_path / "Clive.lock").read_text() == text


def test_a_link_or_a_directory_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "Clive.lock").symlink_to("elsewhere")
    with pytest.raises(ClivefsError):
        lockfile.read(str(tmp_path))
    with pytest.raises(ClivefsError):
        lockfile.write(str(tmp_path), Lock("", ENTRIES))


def test_keys_of_later_versions_of_this_format_are_passed_over() -> None:
    lock = lockfile.parse(f"version = 1\nnews = 1\n[mounts.a]\nsource = 'x'\ntree = '{TREE}'\nnews = [1]")
    assert lock.entries == {"a": Locked("x", TREE)}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


NOTHING = st.none()
SOURCES = TEXTS.filter(lambda text: not text.startswith(("git+", "pypi:", "npm:", "archive:")))
LOCKED = st.builds(
    Locked, SOURCES, st.just(TREE), version=NOTHING | TEXTS, sha256=NOTHING, integrity=NOTHING | TEXTS, commit=NOTHING
)


@given(st.dictionaries(TEXTS, LOCKED, max_size=4))
@settings(max_examples=60)
def test_any_lock_reads_back(entries: dict[str, Locked]) -> None:
    lock = Lock("Clive.lock", entries)
    text = lockfile.format_lock(lock)
    assert lockfile.parse(text) == lock
    assert lockfile.format_lock(lockfile.parse(text)) == text


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_any_text_is_a_lock_or_an_error_for_people(text: str) -> None:
    try:
        lockfile.parse(text)
    except ClivefsError as error:
        place = error.place
    else:
        place = "Clive.lock"
    assert place == "Clive.lock"


def test_a_lock_that_somebody_else_wrote_meanwhile_is_left_alone(tmp_path: Path) -> None:
    before = lockfile.read(str(tmp_path))
    lockfile.write(str(tmp_path), Lock("", {"vendor/six": SIX}), before=before)
    text = (tmp_path / "Clive.lock").read_text()
    with pytest.raises(ClivefsError, match="changed meanwhile"):
        lockfile.write(str(tmp_path), Lock("", ENTRIES), before=before)
    assert (tmp_path / "Clive.lock").read_text() == text
    assert lockfile.write(str(tmp_path), Lock("", ENTRIES), before=lockfile.read(str(tmp_path)))


def test_a_new_lock_has_the_mode_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "Clive.toml").write_text("")
    (tmp_path / "Clive.toml").chmod(0o640)
    old = os.umask(0)  # as in the daemon
    try:
        lockfile.write(str(tmp_path), Lock("", ENTRIES))
    finally:
        os.umask(old)
    assert (tmp_path / "Clive.lock").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("source", ["git+../x", "pypi:six==1.16.0", "npm:x@1.0.0", "archive:../x"])
def test_an_entry_without_the_digest_of_its_kind_is_no_entry(source: str) -> None:
    with pytest.raises(ClivefsError, match=r"has no `(commit|sha256)`"):
        lockfile.parse(f"version = 1\n[mounts.a]\nsource = '{source}'\ntree = '{TREE}'")
