"""The encoders against stock git, byte for byte."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.objects.encode import (
    EMPTY_BLOB,
    EMPTY_TREE,
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_GITLINK,
    MODE_SYMLINK,
    MODE_TREE,
    Commit,
    Signature,
    TreeEntry,
    check_tree_entry,
    decode_commit,
    decode_signature,
    decode_tag,
    decode_tree,
    encode_commit,
    encode_tree,
    hash_object,
)
from clivefs.objects.errors import CorruptObject, InvalidName

Git = Callable[..., bytes]

MODES = [MODE_TREE, MODE_FILE, MODE_EXECUTABLE, MODE_SYMLINK, MODE_GITLINK]
BLOB = hash_object("blob", b"")

# Few letters, so that names are often prefixes of one another: that is where git's order is special.
names = st.one_of(
    st.text("ab.-/0".replace("/", ""), min_size=1, max_size=4).map(str.encode),
    st.binary(min_size=1, max_size=255).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0")),
).filter(lambda name: name not in (b".", b"..", b".git"))
entry_lists = st.dictionaries(names, st.sampled_from(MODES), max_size=12)
oids = st.binary(min_size=20, max_size=20)
words = st.text(st.characters(exclude_characters="\0\n<>", exclude_categories=["Cs"]), max_size=12).map(str.encode)
signatures = st.builds(
    Signature, words, words, st.integers(0, 2**40), st.sampled_from([b"+0000", b"-0000", b"+0545", b"-1200"])
)
headers = st.tuples(
    st.sampled_from([b"encoding", b"gpgsig", b"mergetag", b"change-id"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30).map(str.encode),
)
commits = st.builds(
    Commit,
    oids,
    st.lists(oids, max_size=3).map(tuple),
    signatures,
    signatures,
    st.binary(max_size=60),
    st.lists(headers, max_size=3).map(tuple),
)


def test_names_of_empty_objects() -> None:
    assert EMPTY_TREE.hex() == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    assert EMPTY_BLOB.hex() == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_blobs_as_git_names_them(git: Git, tmp_path: Path) -> None:
    contents = [b"", b"x", b"\0\n", random.Random(1).randbytes(100_000), b"\r\n" * 50]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(content)
    listing = b"".join(b"%d\n" % number for number in range(len(contents)))
    found = git("hash-object", "--no-filters", "--stdin-paths", stdin=listing).split()
    assert [hash_object("blob", content).hex().encode() for content in contents] == found


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entry_lists, min_size=1, max_size=8))
def test_trees_as_git_writes_them(git: Git, tmp_path: Path, trees: list[dict[bytes, int]]) -> None:
    if not (tmp_path / "r").exists():
        git("init", "-q", "r")
    kinds = {MODE_TREE: b"tree", MODE_GITLINK: b"commit"}
    listing = b""
    for tree in trees:
        for name, mode in tree.items():
            kind = kinds.get(mode, b"blob")
            listing += b"%06o %s %s\t%s\0" % (mode, kind, BLOB.hex().encode(), name)
        listing += b"\0"
    found = git("mktree", "-z", "--missing", "--batch", cwd=tmp_path / "r", stdin=listing).split()
    payloads = [encode_tree([TreeEntry(mode, name, BLOB) for name, mode in tree.items()]) for tree in trees]
    assert [hash_object("tree", payload).hex().encode() for payload in payloads] == found
    for tree, payload in zip(trees, payloads, strict=True):
        entries = decode_tree(payload)
        assert {entry.name: entry.mode for entry in entries} == tree
        assert encode_tree(reversed(entries)) == payload


def test_a_tree_of_100_000_entries(git: Git, tmp_path: Path) -> None:
    rng = random.Random(7)
    entries = [TreeEntry(MODES[n % 4], b"f%x-%d" % (rng.getrandbits(30), n), rng.randbytes(20)) for n in range(100_000)]
    payload = encode_tree(entries)
    git("init", "-q", "r")
    oid = git("hash-object", "-t", "tree", "-w", "--stdin", cwd=tmp_path / "r", stdin=payload).strip()
    assert oid.decode() == hash_object("tree", payload).hex()
    decoded = decode_tree(payload)
    assert sorted(decoded) == sorted(entries)
    assert git("ls-tree", "-z", "--name-only", oid.decode(), cwd=tmp_path / "r").split(b"\0")[:-1] == [
        entry.name for entry in decoded
    ]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_tree_decoder(data: bytes) -> None:
    try:
        entries = decode_tree(data)
    except CorruptObject:
        return
    assert sum(len(entry.name) + 22 for entry in entries) <= len(data)


@given(entry_lists, st.integers(1, 25))
def test_a_tree_cut_short_is_corrupt(tree: dict[bytes, int], cut: int) -> None:
    payload = encode_tree([TreeEntry(mode, name, BLOB) for name, mode in tree.items()])
    whole = {b"".join(b"%o %b\0%b" % entry for entry in decode_tree(payload)[:n]) for n in range(len(tree) + 1)}
    if payload[:-cut] not in whole:
        with pytest.raises(CorruptObject):
            decode_tree(payload[:-cut])


@pytest.mark.parametrize(
    "data",
    [
        b"100644",
        b"100644 f\0",
        b"644 f\0" + b"x" * 19,
        b"10064g f\0" + b"x" * 20,
        b" f\0" + b"x" * 20,
        b"-1 f\0" + b"x" * 20,
        b"777777777777 f\0" + b"x" * 20,
    ],
)
def test_malformed_trees(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        decode_tree(data)


def test_odd_entries_decode() -> None:
    raw = b"".join(
        b"%b %b\0%b" % (mode, name, BLOB) for mode, name in [(b"040000", b"a/b"), (b"0", b""), (b"100600", b"..")]
    )
    assert [(entry.mode, entry.name) for entry in decode_tree(raw)] == [(0o40000, b"a/b"), (0, b""), (0o100600, b"..")]


@pytest.mark.parametrize("name", [b"", b".", b"..", b".git", b"a/b", b"/", b"a\0b"])
def test_names_that_no_tree_may_hold(name: bytes) -> None:
    for others in ([], [TreeEntry(MODE_FILE, b"other", BLOB)]):
        with pytest.raises(InvalidName):
            encode_tree([*others, TreeEntry(MODE_FILE, name, BLOB)])


def test_what_makes_no_tree() -> None:
    with pytest.raises(InvalidName, match="twice"):
        encode_tree(
            [TreeEntry(MODE_FILE, b"a", BLOB), TreeEntry(MODE_FILE, b"a-b", BLOB), TreeEntry(MODE_TREE, b"a", BLOB)]
        )
    with pytest.raises(InvalidName):
        encode_tree([TreeEntry(MODE_FILE, b"a", b"short")])
    with pytest.raises(InvalidName):
        encode_tree([TreeEntry(0o100600, b"a", BLOB)])


DOT_GITS = [
    b".git", b".GIT", b".Git", b".git ", b".git.", b".git. .", b".git::$INDEX_ALLOCATION", b".GIT:x", b"git~1",
    b"GIT~1", b"git~1 ", b"git~1.", b"GIT~1::$DATA", b"a\\.git", b".git\\x", b".git \\x", b"git~1\\x",
    ".g\u200cit".encode(), ".\u200dGIT".encode(), "\ufeff.git".encode(), ".git\u206f".encode(), ".gi\u202et".encode(),
]  # fmt: skip
HARMLESS = [
    b"git", b".gitignore", b".github", b"git~2", b"git~10", b".gitx", b"x.git", b".git-x", b".g", b"\xff\xfe", b"...",
    b".gitmodules", b"a b", b"a:b", b"a\\b", ".gït".encode(), b"con", b" .git", b"\xe2\x80", b".gitattributes", b"~",
]  # fmt: skip


@pytest.mark.parametrize("name", DOT_GITS)
def test_spellings_of_dot_git(name: bytes) -> None:
    for mode in MODES:
        assert check_tree_entry(mode, name) == "the name is a spelling of `.git`"


def test_git_refuses_the_same_names(git: Git, tmp_path: Path) -> None:
    git("init", "-q", "r")
    for setting in ("core.protectHFS", "core.protectNTFS"):
        git("config", setting, "true", cwd=tmp_path / "r")

    def refused(name: bytes) -> bool:
        line = b"100644 %s 0\t%s\0" % (BLOB.hex().encode(), name)
        git("read-tree", "--empty", cwd=tmp_path / "r")
        git("hash-object", "-w", "--stdin", cwd=tmp_path / "r")
        # A refused path makes update-index fail only on the command line; from stdin it is left out.
        try:
            git("update-index", "-z", "--index-info", cwd=tmp_path / "r", stdin=line)
        except Exception:  # noqa: BLE001 - any failure is a refusal
            return True
        return git("ls-files", "-z", cwd=tmp_path / "r") == b""

    for name in [*DOT_GITS, *HARMLESS]:
        assert refused(name) == (check_tree_entry(MODE_FILE, name) is not None), name


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names(name: bytes) -> None:
    assert check_tree_entry(MODE_FILE, name) is None
    assert check_tree_entry(MODE_TREE, name) is None


def test_other_reasons_to_hide_an_entry() -> None:
    for name, why in [
        (b"", "empty"),
        (b"..", "`..`"),
        (b".", "`.`"),
        (b"a/b", "slash"),
        (b"a\0b", "NUL"),
        (b"x" * 256, "256"),
    ]:
        assert why in (check_tree_entry(MODE_FILE, name) or "")
    for mode in (0, 0o100600, 0o100777, 0o20644, 0o60644, 0o140000, 0o40755, 0o777777):
        assert "mode" in (check_tree_entry(mode, b"a") or "")
    assert check_tree_entry(0o100664, b"a") is None
    for name in (b".gitmodules", b".GITMODULES ", b"gitmod~1", b"GI7EBA~1", ".gitmod\u200cules".encode()):
        assert "symlink" in (check_tree_entry(MODE_SYMLINK, name) or "")
        assert check_tree_entry(MODE_FILE, name) is None
    assert check_tree_entry(MODE_FILE, b"x" * 255) is None


@given(commits)
def test_commits_come_back(commit: Commit) -> None:
    assert decode_commit(encode_commit(commit)) == commit


def test_commits_as_git_writes_them(git: Git, tmp_path: Path) -> None:
    git("init", "-q", "r")
    repository = tmp_path / "r"
    git("hash-object", "-t", "tree", "-w", "--stdin", cwd=repository)
    tree = EMPTY_TREE.hex()
    ours = Commit(
        EMPTY_TREE,
        (),
        Signature(b"A U Thor", b"author@example.org", 1_700_000_000, b"+0100"),
        Signature(b"C O Mitter", b"committer@example.org", 1_700_000_001, b"-0230"),
        "Grüße\n\nbody\n".encode(),
    )
    first = git("commit-tree", tree, cwd=repository, stdin=ours.message).strip()
    assert hash_object("commit", encode_commit(ours)).hex().encode() == first
    child = ours._replace(parents=(bytes.fromhex(first.decode()),), message=b"\n", extra=((b"encoding", b"latin1"),))
    config = ("-c", "i18n.commitEncoding=latin1")
    second = git(*config, "commit-tree", tree, "-p", first, cwd=repository, stdin=b"\n").strip()
    assert git("cat-file", "commit", second, cwd=repository) == encode_commit(child)
    assert child.encoding == b"latin1"
    # git takes ours, with a signature in it, and finds no fault.
    signed = ours._replace(extra=((b"gpgsig", b"-----BEGIN-----\n\nabc\n-----END-----\n"),))
    git("hash-object", "-t", "commit", "-w", "--stdin", cwd=repository, stdin=encode_commit(signed))


@pytest.mark.parametrize(
    "raw",
    [b"", b"tree", b"tree 12\n", b"parent " + b"0" * 40, b"tree " + b"0" * 40 + b"\nauthor a <b> 1 +0000\n\n",
     b"tree " + b"G" * 40 + b"\nauthor a <b> 1 +0000\ncommitter a <b> 1 +0000\n\n"],
)  # fmt: skip
def test_malformed_commits(raw: bytes) -> None:
    with pytest.raises(CorruptObject):
        decode_commit(raw)


@given(st.binary(max_size=150))
def test_no_bytes_break_the_other_decoders(data: bytes) -> None:
    for decode in (decode_commit, decode_tag):
        with pytest.raises(CorruptObject):
            decode(data)
    decode_signature(data)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"a <b> 5 +0000", 5), (b"a <b>", 0), (b"a b", 0), (b"a <b> x y", 0), (b"a <<b>> 7 +0100", 7), (b"<> 9", 9),
     (b"a <b> 99999999999999999999 +0000", 0), (b"a <b> 18446744073709551615 +0000", 0)],
)  # fmt: skip
def test_signatures_of_old_histories(text: bytes, seconds: int) -> None:
    signature = decode_signature(text)
    assert signature.seconds == seconds
    assert decode_signature(signature.encode()) == signature


def test_what_makes_no_commit() -> None:
    who = Signature(b"a", b"b", 1)
    good = Commit(EMPTY_TREE, (), who, who, b"")
    for bad in (
        good._replace(tree=b"short"),
        good._replace(author=who._replace(name=b"a\nb")),
        good._replace(author=who._replace(zone=b"UTC")),
        good._replace(extra=((b"tree", b"x"),)),
        good._replace(extra=((b"a b", b"x"),)),
    ):
        with pytest.raises(InvalidName):
            encode_commit(bad)


def test_tags(git: Git, tmp_path: Path) -> None:
    git("init", "-q", "r")
    git("commit", "-q", "--allow-empty", "-m", "x", cwd=tmp_path / "r")
    git("tag", "-a", "-m", "tag", "v1", cwd=tmp_path / "r")
    head = git("rev-parse", "HEAD", cwd=tmp_path / "r").strip().decode()
    assert decode_tag(git("cat-file", "tag", "v1", cwd=tmp_path / "r")) == (bytes.fromhex(head), "commit")
    assert stat.S_ISDIR(MODE_TREE)
