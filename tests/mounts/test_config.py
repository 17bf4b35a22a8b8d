"""Clive.toml: what is accepted, and how what is not is said."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.config import ConfigError, Keep, Workspace, load, parse
from clivefs.mounts.config.edit import toml_value
from clivefs.mounts.config.errors import Problem
from clivefs.mounts.config.schema import TABLES, Key

ROOT = "/home/u/shop"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8eWNkRtjFPmwoFbJUZ8ng+kmDyf7m5nUqbHqjwLXTv"


def read(text: str, root: str = ROOT) -> Workspace:
    return parse(text, file="Clive.toml", root=root)


def problems(text: str, root: str = ROOT) -> list[tuple[int, str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(text, root)
    return [(each.line, each.key, each.message, each.remedy) for each in caught.value.problems]


def found_in(text: str) -> tuple[Problem, ...]:
    try:
        read(text)
    except ConfigError as error:
        return error.problems
    return ()


WHOLE = f"""\
[workspace]
name = "shop"

[mounts."lib/requests"]
git = "https://example.org/requests.git"
ref = "v2.32.3"
subdir = "src"
patches = ["patches/requests/*.patch"]
write = "overlay"

[mounts."vendor/left-pad"]
npm = "left-pad@1.3.0"

[mounts."vendor/six"]
pypi = "six==1.16.0"

[mounts."vendor/zlib"]
archive = "https://example.org/zlib-1.3.1.tar.gz"
sha256 = "{"A" * 64}"
strip = 1

[mounts."data"]
local = "../data"

[rules.protos]
foreach = "proto/*.proto"
outputs = ["gen/{{stem}}_pb2.py"]
run = "protoc --python_out=gen {{path}}"
mode = "lazy"

[services.web]
run = "python -m http.server 8000"
inputs = ["site/**"]

[sessions]
exclude = ["*.tmp"]
keep = {{ all = "2h30m", hourly = "30d", daily = "forever" }}

[peers.desk]
url = "ssh://desk.local:7420"
key = "{KEY}"
allow = ["read", "write"]

[reactor]
jobs = 3

[limits]
network_timeout = "5s"
archive_size = "16GiB"
"""


def test_everything() -> None:
    found = read(WHOLE)
    requests, left_pad, six, zlib, data = found.mounts
    assert (found.name, found.root, found.write, found.warnings) == ("shop", ROOT, "through", ())
    assert (requests.kind, requests.location, requests.ref, requests.subdir) == (
        "git",
        "https://example.org/requests.git",
        "v2.32.3",
        "src",
    )
    assert (requests.patches, requests.write, requests.git_dir, requests.line) == (
        ("patches/requests/*.patch",),
        "overlay",
        True,
        4,
    )
    assert requests.source == "git+https://example.org/requests.git@v2.32.3#subdir=src"
    assert (left_pad.source, six.source) == ("npm:left-pad@1.3.0", "pypi:six==1.16.0")
    assert (zlib.sha256, zlib.strip, zlib.git_dir) == ("a" * 64, 1, False)
    assert (data.write, data.location, data.host_path, data.source) == ("through", "../data", "/home/u/data", "../data")
    assert found.rules[0].mode == "lazy"
    assert found.services[0].inputs == ("site/**",)
    assert found.sessions.exclude == ("*.tmp",)
    assert found.sessions.keep == Keep(all=9000, hourly=30 * 86400, daily=None, yearly=None)
    assert found.peers[0].allow == ("read", "write")
    assert found.reactor.jobs == 3
    assert (found.limits.network_timeout, found.limits.archive_size) == (5, 16 << 30)
    assert found.entry("vendor/six") == six
    assert found.entry("vendor") is None


def test_nothing() -> None:
    found = read("")
    assert (found.name, found.mounts, found.sessions.ignored, found.limits.network_timeout) == ("shop", (), False, 30)


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        read("").name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "git, blobs, expected",
    [("https://h/x", None, "all"), ("../x", None, "lazy"), ("https://h/x", "lazy", "lazy"), ("../x", "all", "all")],
)
def test_fetch(git: str, blobs: str | None, expected: str) -> None:
    more = f'blobs = "{blobs}"' if blobs else ""
    assert read(f'[mounts.x]\ngit = "{git}"\n{more}').mounts[0].fetch == expected


def test_unknown_key_names_the_near_one() -> None:
    text = '[mounts."lib/x"]\ngit = "https://h/x"\n\nreff = "main"\n'
    assert problems(text) == [(4, 'mounts."lib/x".reff', "unknown key", "did you mean `ref`?")]


def test_the_error_as_people_see_it() -> None:
    with pytest.raises(ConfigError) as caught:
        read('[mounts."lib/x"]\ngit = "https://h/x"\nreff = "main"\n')
    assert caught.value.place == 'Clive.toml:3: mounts."lib/x".reff'
    assert str(caught.value) == 'Clive.toml:3: mounts."lib/x".reff: unknown key\n  did you mean `ref`?'
    assert caught.value.exit_code == 1


def test_all_problems_are_found_in_file_order() -> None:
    found = problems(
        '[worspace]\nname = "x"\n[mounts.b]\nlocal = 3\n[mounts."a"]\n[mounts.b.c]\n[sessions]\nignored = "yes"\n'
    )
    assert [(line, key) for line, key, _, _ in found] == [
        (1, "worspace"),
        (4, "mounts.b.local"),
        (5, "mounts.a"),
        (6, "mounts.b.c"),
        (8, "sessions.ignored"),
    ]


@pytest.mark.parametrize(
    "text, line, key, message",
    [
        ("x = 1", 1, "x", "unknown key"),
        ("mounts = 1", 1, "mounts", "a table of entries is needed here, not an integer"),
        ("[[mounts]]\nlocal='x'", 1, "mounts", "a table of entries is needed here, not an array"),
        ("[mounts]\nx = 1", 2, "mounts.x", "a table is needed here, not an integer"),
        ("[mounts.x]", 1, "mounts.x", "the entry has no source"),
        ("[mounts.x]\ngit='../x'\npypi='six==1'", 3, "mounts.x.pypi", "several sources: git, pypi"),
        ("[mounts.x]\nlocal='../x'\nref='v1'", 3, "mounts.x.ref", "does not belong to a local source"),
        ("[mounts.x]\npypi='six==1'\nsha256='" + "0" * 64 + "'", 3, "mounts.x.sha256", "does not belong to a pypi"),
        ("[mounts.x]\nnpm='a@1'\nblobs='all'", 3, "mounts.x.blobs", "does not belong to a npm source"),
        ("[mounts.x]\ngit='../x'\nwrite='through'", 3, "mounts.x.write", "a git source cannot be written through"),
        ("[mounts.x]\ngit='../x'\nwrite='overly'", 3, "mounts.x.write", "'overly' is not one of"),
        ("[mounts.x]\ngit='../x'\npatches='a.patch'", 3, "mounts.x.patches", "an array of strings is needed"),
        (
            "[mounts.x]\ngit='../x'\npatches=[\n'a',\n3]",
            5,
            "mounts.x.patches[1]",
            "a string is needed here, not an int",
        ),
        ("[mounts.x]\ngit='../x'\npatches=['../a']", 3, "mounts.x.patches[0]", "must not leave by `..`"),
        ("[mounts.x]\ngit='../x'\nsubdir='a/../..'", 3, "mounts.x.subdir", "must not leave by `..`"),
        ("[mounts.x]\ngit='../x'\nsubdir='/a'", 3, "mounts.x.subdir", "must be relative"),
        ("[mounts.x]\ngit='../x'\nref='--upload-pack=x'", 3, "mounts.x.ref", "is not a ref"),
        ("[mounts.x]\ngit='../x'\nref='a b'", 3, "mounts.x.ref", "is not a ref"),
        ("[mounts.x]\ngit='../x'\nref='" + "a" * 40 + "'\nfollow=true", 4, "mounts.x.follow", "a commit never moves"),
        ("[mounts.x]\ngit='ext::sh -c id'", 2, "mounts.x.git", "git's remote helpers are not used"),
        ("[mounts.x]\ngit='--upload-pack=id'", 2, "mounts.x.git", "cannot begin with `-`"),
        ("[mounts.x]\ngit='ssh://-oProxyCommand=id/x'", 2, "mounts.x.git", "names no host"),
        ("[mounts.x]\ngit='git@-oProxyCommand=id:x'", 2, "mounts.x.git", "names no repository of a host"),
        ("[mounts.x]\ngit='gopher://h/x'", 2, "mounts.x.git", "is not a transport"),
        ("[mounts.x]\ngit='~/x'", 2, "mounts.x.git", "`~` is not expanded here"),
        ("[mounts.x]\nlocal='https://h/x'", 2, "mounts.x.local", "is a URL, not a path"),
        ("[mounts.x]\nlocal='a/../b'", 2, "mounts.x.local", "`..` after a name"),
        ('[mounts.x]\nlocal="a\\u0000b"', 2, "mounts.x.local", "has a control character"),
        ("[mounts.x]\npypi='six'", 2, "mounts.x.pypi", "is not NAME==VERSION"),
        ("[mounts.x]\nnpm='left-pad'", 2, "mounts.x.npm", "is not NAME@VERSION"),
        ("[mounts.x]\narchive='ftp://h/x.tar'", 2, "mounts.x.archive", "is not a transport"),
        ("[mounts.x]\narchive='x.tar'\nsha256='12'", 3, "mounts.x.sha256", "is not a SHA-256 digest"),
        ("[mounts.x]\narchive='x.tar'\nstrip=-1", 3, "mounts.x.strip", "-1 is not between 0 and 100"),
        ("[mounts.x]\narchive='x.tar'\nstrip=true", 3, "mounts.x.strip", "an integer is needed here, not a boolean"),
        ("[mounts.x]\narchive='x.tar'\nstrip=0x" + "f" * 9000, 3, "mounts.x.strip", "the number is not between"),
        ("[workspace]\nname='a/b'", 2, "workspace.name", "is not a single path component"),
        ("[workspace]\nname=''", 2, "workspace.name", "the name is empty"),
        ("[workspace]\nwrite=1979-05-27", 2, "workspace.write", "a string is needed here, not a date or time"),
        ("[rules.x]\nrun='a'\ninputs=['b']", 1, "rules.x", "`outputs` is missing"),
        ("[rules.x]\nrun='a'\noutputs=['b']", 1, "rules.x", "a rule needs its inputs"),
        ("[rules.x]\nrun='a'\noutputs=['b']\ninputs=['c']\nforeach='d'", 1, "rules.x", "both `foreach` and `inputs`"),
        ("[rules.'a b']\nrun='a'\noutputs=['b']\ninputs=['c']", 1, 'rules."a b"', "cannot be a name here"),
        ("[services.x]\nrun=' '", 2, "services.x.run", "the command is empty"),
        ("[sessions]\nkeep={all='1 day'}", 2, "sessions.keep.all", "is not a duration"),
        ("[sessions.keep]\nweekly='1w'", 2, "sessions.keep.weekly", "unknown key"),
        ("[peers.x]\nkey='ssh-rsa AAAA'", 2, "peers.x.key", "is not an ed25519 public key"),
        (f"[peers.x]\nkey='{KEY}'\nurl='http://x'", 3, "peers.x.url", "is not a transport"),
        (f"[peers.x]\nkey='{KEY}'\nallow=['reed']", 3, "peers.x.allow[0]", "'reed' is not one of read, write"),
        ("[limits]\nnetwork_timeout='forever'", 2, "limits.network_timeout", "is not a duration"),
        ("[limits]\narchive_size='8GB!'", 2, "limits.archive_size", "is not a size"),
    ],
)
def test_one_problem(text: str, line: int, key: str, message: str) -> None:
    (found,) = problems(text)
    assert found[:2] == (line, key)
    assert message in found[2]
    assert found[3], "every problem has a remedy"


@pytest.mark.parametrize(
    "path, message",
    [
        ("/lib", "must be relative"),
        ("../lib", "must not leave"),
        ("lib/../../x", "must not leave"),
        ("lib//x", "is not in its shortest form"),
        ("./lib", "is not in its shortest form"),
        ("lib/", "is not in its shortest form"),
        (".", "is not in its shortest form"),
        ("", "is empty"),
        (".git", "no entry can be mounted in"),
        ("lib/.GIT/hooks", "no entry can be mounted in"),
        (".clive/x", "no entry can be mounted in"),
        ("GIT~1", "no entry can be mounted in"),
        ("Clive.toml", "cannot take the place"),
        ("Clive.toml/x", "cannot take the place"),
        ("x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("a/" * 2100 + "b", "longer than 4096 bytes"),
        ("a\nb", "control character"),
    ],
)
def test_bad_entry_paths(path: str, message: str) -> None:
    found = problems(f"[mounts.{toml_value(path)}]\nlocal = '../x'")
    assert [each for each in found if message in each[2]]
    assert all(each[0] == 1 for each in found)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[workspace]\nname = 5\n", 'write it as in name = "shop"'),
        ("[mounts.a]\ngit = 7\n", 'write it as in git = "https://example.org/requests.git"'),
        ('[mounts.a]\nlocal = "x"\npatches = 3\n', 'write it as in patches = ["patches/*.patch"]'),
        ("[limits]\nnetwork_timeout = 5\n", 'write it as in network_timeout = "30s"'),
        ('[rules.a]\noutputs = ["x"]\ninputs = ["y"]\n', 'add it, as in run = "make gen"'),
    ],
)
def test_a_remedy_shows_what_to_write(text: str, remedy: str) -> None:
    assert problems(text)[0][3] == remedy


@pytest.mark.parametrize("key", [key for keys in TABLES.values() for key in keys], ids=lambda key: key.name)
def test_what_remedies_show_can_be_written(key: Key) -> None:
    key.read(tomllib.loads(key.shown)[key.name])


def test_overlapping_entries() -> None:
    text = "[mounts.'lib/a/b']\ngit='../x'\n[mounts.'lib/a']\ngit='../x'\n[mounts.'lib/ab']\ngit='../x'\n"
    assert problems(text) == [
        (1, 'mounts."lib/a/b"', 'overlapping: it lies below mounts."lib/a" (line 3)', "give one of them another path")
    ]


@pytest.mark.parametrize("local", [".", "..", "/", "/home", "/home/u/shop", "lib", "lib/x", "./lib/"])
def test_cycles(local: str) -> None:
    (found,) = problems(f"[mounts.'lib/x']\nlocal = '{local}'")
    assert found[1] == 'mounts."lib/x".local'
    assert found[2].startswith("a cycle:")


@pytest.mark.parametrize("local", ["lib/x/y", "src", "../shop2", "/home/u/shopping", "lib2"])
def test_no_cycles(local: str) -> None:
    assert read(f"[mounts.'lib/x']\nlocal = '{local}'").mounts[0].location == local


def test_the_own_repository_at_a_ref_is_no_cycle() -> None:
    assert read("[mounts.'old']\ngit = '.'\nref = 'v1'").mounts[0].host_path == ROOT


def test_patches_wait_while_a_local_directory_is_shown() -> None:
    for write in ("through", "overlay", "none"):
        found = read(f"[mounts.x]\nlocal = '../x'\npatches = ['p/*.patch']\nwrite = '{write}'")
        assert [(each.line, each.key) for each in found.warnings] == [(3, "mounts.x.patches")]
    assert read("[mounts.x]\ngit = '../x'\npatches = ['p/*.patch']").warnings == ()


def test_name_of_an_odd_directory() -> None:
    assert problems("", "/")[0][1:3] == ("workspace", "the directory's name '' cannot be the workspace's")
    assert problems("", "/a\nb")[0][1] == "workspace"
    assert problems("", "/" + os.fsdecode(b"\xff"))[0][1] == "workspace"
    assert read("[workspace]\nname = 'w'", "/").name == "w"


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("a = \n", 1, "not valid TOML: Invalid value"),
        ("[a]\n\nb = 'x\n", 3, "not valid TOML"),
        ("a = 1\na = 2\n", 2, "not valid TOML: Cannot overwrite a value"),
        ("a = [1,\n2,\n", 2, "not valid TOML"),
        ("\ufeff[a]", 1, "byte order mark"),
        ("x = " + "[" * 100000, 1, "nested deeper than 16"),
        ("\nx = " + "{a=" * 100000, 2, "nested deeper than 16"),
        ("\n\n" + "a." * 400000 + "a = 1", 3, "nested deeper than 16"),
        ("x = " + "1" * 5000, 1, "a number or a nesting beyond all bounds"),
        ("#" * (1 << 20) + "\n", 1, "larger than 1048576 bytes"),
        ("x = '\ud800'", 1, "not UTF-8"),
    ],
)
def test_not_toml(text: str, line: int, message: str) -> None:
    ((found_line, _, found, remedy),) = problems(text)
    assert (found_line, message in found, bool(remedy)) == (line, True, True)


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "Clive.toml"
    file.write_bytes(b'[mounts.x]\r\ngit = "../x"\r\n')
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    found = load(link / "Clive.toml")
    assert (found.root, found.name, found.mounts[0].ref) == (str(tmp_path.resolve()), tmp_path.name, None)
    assert load(file, root="/elsewhere").root == "/elsewhere"


def test_load_refuses(tmp_path: Path) -> None:
    file = tmp_path / "Clive.toml"

    def refusal() -> str:
        with pytest.raises(ClivefsError) as caught:
            load(file)
        assert str(file) in str(caught.value)
        assert caught.value.remedy
        return caught.value.message

    assert "no such file" in refusal()
    file.write_bytes(b"# ok\n# \xff\n")
    assert "byte 0xff is not UTF-8" in refusal()
    file.write_bytes(b"#" * ((1 << 20) + 1))
    assert "larger than" in refusal()
    file.unlink()
    file.symlink_to("/etc/shadow")
    assert "symbolic link" in refusal()
    file.unlink()
    os.mkfifo(file)
    assert "not a regular file" in refusal()
    file.unlink()
    file.mkdir()
    assert "not a regular file" in refusal()


KEYS = sorted({key.name for keys in TABLES.values() for key in keys})
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.sampled_from(
        ["", ".", "..", "a/b", "../x", "24h", "eager", "through", "https://h/x", "six==1", KEY, "@", "a@1"]
    ),
    st.text(max_size=20),
)
names = st.one_of(st.sampled_from([*KEYS, *(name.partition(".")[0] for name in TABLES)]), st.text(max_size=10))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=5)),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_parse_raises_nothing_else_on_any_text(text: str) -> None:
    for problem in found_in(text):
        assert 1 <= problem.line <= text.count("\n") + 1
        assert str(problem)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, values, max_size=6))
def test_parse_raises_nothing_else_on_any_toml(document: dict[str, object]) -> None:
    text = "".join(f"{toml_value({key: value})[2:-2]}\n" for key, value in document.items())
    assert tomllib.loads(text) == document
    assert all(1 <= problem.line <= len(document) for problem in found_in(text))
