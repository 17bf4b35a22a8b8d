"""Edits of Clive.toml: exactly what was asked for, and nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.config.config import load, parse
from clivefs.mounts.config.edit import attach, detach, normal_path, replace, toml_string, toml_value, update
from clivefs.mounts.config.file import create, save
from clivefs.mounts.config.patches import add_pattern
from clivefs.mounts.config.source_notation import Source, parse_source
from clivefs.mounts.config.workspace_file import init_workspace
from clivefs.mounts.recording.layers import is_never
from clivefs.mounts.wholefile import sweep

TEXT = """\
# The shop.

[workspace]  # who we are
name = "shop"

# requests, patched
# for the proxy
[mounts."lib/requests"]
git = "https://example.org/requests.git"  # upstream
ref = "v2.32.3"
# keep in step with the servers
patches = [
  "patches/requests/*.patch",  # ours
]
follow = false

[mounts."data"]
local = "../data"
# write = "none"

# The rules
[rules.protos]
inputs = ["proto/**"]
outputs = ["gen/x.py"]
run = '''protoc "x"'''
"""
SIX = Source("pypi", "six==1.16.0")
ATTACHED = '\n[mounts."vendor/six"]\npypi = "six==1.16.0"\n'


def test_attach_goes_after_the_last_entry() -> None:
    assert attach(TEXT, "vendor/six", SIX) == TEXT.replace("\n\n# The rules", "\n" + ATTACHED + "\n# The rules")


def test_attach_writes_everything() -> None:
    source = parse_source("git+ssh://git@h/x.git@v1#subdir=src")
    text = attach("", 'a "b"', source, write="none", patches=["p/1.patch", "p/2.patch"])
    assert text == (
        '[mounts."a \\"b\\""]\ngit = "ssh://git@h/x.git"\nref = "v1"\nsubdir = "src"\n'
        'patches = ["p/1.patch", "p/2.patch"]\nwrite = "none"\n'
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("# only a comment", "# only a comment\n" + ATTACHED),
        ("a = 1\n\n", "a = 1\n" + ATTACHED),
        (
            "[mounts]\nx = { local = '../x' }\n[sessions]\n",
            "[mounts]\nx = { local = '../x' }\n" + ATTACHED + "\n[sessions]\n",
        ),
        ("mounts.x.local = '../x'\ny = 1\n[z]\n", "mounts.x.local = '../x'\ny = 1\n" + ATTACHED + "\n[z]\n"),
        ("[workspace]\r\nname = 'x'\r\n", "[workspace]\r\nname = 'x'\r\n" + ATTACHED.replace("\n", "\r\n")),
        ("mounts = { }", 'mounts = { "vendor/six" = { pypi = "six==1.16.0" } }'),
        (
            "[mounts.x]\nlocal = '../x'\n# on rules\n[rules.y]\n",
            "[mounts.x]\nlocal = '../x'\n" + ATTACHED + "\n# on rules\n[rules.y]\n",
        ),
    ],
)
def test_attach_to_other_layouts(text: str, expected: str) -> None:
    assert attach(text, "vendor/six", SIX) == expected


def test_attach_refuses_a_taken_path() -> None:
    with pytest.raises(ClivefsError, match="already") as caught:
        attach(TEXT, "data", SIX, file="shop/Clive.toml")
    assert caught.value.place == "shop/Clive.toml: mounts.data"


def test_detach_takes_the_entry_and_its_own_comments() -> None:
    text = detach(TEXT, "lib/requests")
    first, rest = TEXT.split("# requests, patched\n")
    assert text == first + rest[rest.index('[mounts."data"]') :]
    text = detach(TEXT, "data")
    assert '[mounts."data"]' not in text
    assert "# write" in text, "a comment below an entry may be about anything"
    assert "# The rules\n[rules.protos]" in text


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "[mounts]\nx = { local = '../x' } # a\ny = { local = '../y' } # b\n",
            "[mounts]\ny = { local = '../y' } # b\n",
        ),
        ("[mounts]\nx.local = '../x'\n# c\nx.write = 'none'\ny.local = '../y'\n", "[mounts]\ny.local = '../y'\n"),
        ("mounts = { x = { local = '../x' }, y = { local = '../y' } } # a", 'mounts = { y = { local = "../y" } } # a'),
        ("mounts.x.local = '../x'\nother = 1", "other = 1"),
        ("[mounts.x]\nlocal = '../x'\n[z]\n[mounts.x.more]\na = 1", "[z]\n"),
        ("# the file\n[mounts.x]\nlocal = '../x'\n", "# the file\n"),
        ("\n[mounts.x]\nlocal = '../x'\n\n\n[z]\n", "[z]\n"),
        ("a = 1\r\n\r\n[mounts.x]\r\nlocal = '../x'\r\n\r\n[z]", "a = 1\r\n\r\n[z]"),
    ],
)
def test_detach_from_other_layouts(text: str, expected: str) -> None:
    assert detach(text, "x") == expected


def test_detach_names_the_near_one() -> None:
    with pytest.raises(ClivefsError) as caught:
        detach(TEXT, "lib/request")
    assert caught.value.remedy == "did you mean `lib/requests`?"


def test_replace_by_a_checkout_and_back() -> None:
    swapped = replace(TEXT, "lib/requests", parse_source("../requests"))
    assert swapped == TEXT.replace('git = "https://example.org/requests.git"', 'local = "../requests"').replace(
        'ref = "v2.32.3"\n', ""
    ).replace("follow = false\n", "")
    back = replace(swapped, "lib/requests", parse_source("git+https://example.org/requests.git@v2.32.3"))
    assert back == TEXT.replace("follow = false\n", "")
    before, after = (parse(text, file="f", root="/r/s").mounts[0] for text in (TEXT, back))
    assert before == after


def test_replace_by_another_ref_keeps_all_else() -> None:
    text = replace(TEXT, "lib/requests", parse_source("git+https://example.org/requests.git@v2.33.0"))
    assert text == TEXT.replace("v2.32.3", "v2.33.0")


def test_replace_drops_what_cannot_go_with_the_new_source() -> None:
    text = "[mounts.x]\narchive = 'a.tar'\nsha256 = '" + "0" * 64 + "'\nstrip = 1\nwrite = 'none'\n"
    assert replace(text, "x", SIX) == "[mounts.x]\npypi = \"six==1.16.0\"\nwrite = 'none'\n"
    again = replace(text, "x", Source("archive", "b.tar", None, "sub"))
    assert again == '[mounts.x]\narchive = "b.tar"\nsubdir = "sub"\nstrip = 1\nwrite = \'none\'\n'
    text = "[mounts.x]\nlocal = '../x'\nwrite = 'through'"
    assert replace(text, "x", SIX) == '[mounts.x]\npypi = "six==1.16.0"\n'
    text = "[mounts.x]\ngit = '../x'\nref = 'main'\nfollow = true"
    zeros = "0" * 40
    assert replace(text, "x", Source("git", "../x", zeros)) == f"[mounts.x]\ngit = '../x'\nref = \"{zeros}\"\n"
    assert "follow = true" in replace(text, "x", Source("git", "../x", "next"))


def test_update_changes_some_keys() -> None:
    text = "[mounts.x]\ngit = '../x'  # why\nref = 'main'\nfollow = true\n"
    assert update(text, "x", {"ref": "next"}) == text.replace("'main'", '"next"')
    assert update(text, "x", {"follow": None}) == text.replace("follow = true\n", "")
    assert update(text, "x", {"ref": "main"}) == text
    with pytest.raises(ClivefsError, match="no mount entry at y"):
        update(text, "y", {})


@pytest.mark.parametrize(
    ("patches", "wanted"),
    [
        ("", 'patches = ["n"]\n'),
        ("patches = []\n", 'patches = ["n"]\n'),
        ("patches = ['a'] # b\n", "patches = ['a', \"n\"] # b\n"),
        ("patches = ['a', ]\n", "patches = ['a', \"n\" ]\n"),
        ("patches = [\n  'a', # ]\n  # b\n  'c' # d\n]\n", "patches = [\n  'a', # ]\n  # b\n  'c', # d\n  \"n\",\n]\n"),
        ("patches = [ '#]' ]\n", "patches = [ '#]', \"n\" ]\n"),
    ],
)
def test_add_pattern_keeps_the_array(patches: str, wanted: str) -> None:
    head = "[mounts.x]\ngit = '../x'\n"
    assert add_pattern(head + patches, "x", "n") == head + wanted


def test_replace_sets_what_is_given() -> None:
    text = replace("[mounts.x]\nlocal = '../x'", "x", parse_source("../y"), write="overlay", patches=["p"])
    assert text == '[mounts.x]\nlocal = "../y"\nwrite = "overlay"\npatches = ["p"]\n'
    assert replace(text, "x", parse_source("../y"), patches=[]) == '[mounts.x]\nlocal = "../y"\nwrite = "overlay"\n'


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "[mounts]\nx = { git = '../x', ref = 'v1', write = 'none' }",
            '[mounts]\nx = { pypi = "six==1.16.0", write = "none" }',
        ),
        (
            "[mounts]\nx.git = '../x' # a\nx.ref = 'v1'\ny.local = '../y'\n",
            "[mounts]\nx.pypi = \"six==1.16.0\" # a\ny.local = '../y'\n",
        ),
        ("mounts = { x = { git = '../x' } }", 'mounts = { x = { pypi = "six==1.16.0" } }'),
        ("[mounts.x]\nwrite = 'none'", "[mounts.x]\npypi = \"six==1.16.0\"\nwrite = 'none'"),
        ("[mounts.x]", '[mounts.x]\npypi = "six==1.16.0"\n'),
    ],
)
def test_replace_in_other_layouts(text: str, expected: str) -> None:
    assert replace(text, "x", SIX) == expected


def test_an_odd_layout_is_refused_rather_than_broken() -> None:
    with pytest.raises(ClivefsError, match="cannot be edited safely"):
        replace("[mounts.x.y]\n", "x", SIX)
    with pytest.raises(ClivefsError, match="not valid TOML"):
        attach("a = ", "x", SIX)


NAMES = ["a", "lib/b", "data", "c d", 'e"f', "é"]
SOURCES = [Source("local", "../x"), Source("git", "https://h/x", "v1", "src"), SIX, Source("archive", "x.tar")]


@st.composite
def files(draw: st.DrawFn) -> str:
    """A Clive.toml in some layout, with comments and blank lines anywhere."""
    lines: list[str] = []
    noise = st.sampled_from(["", "# note", "  # [mounts.no]", ""])

    def put(*more: str) -> None:
        lines.extend(draw(st.lists(noise, max_size=2)))
        lines.extend(more)

    if draw(st.booleans()):
        put("[workspace]", 'name = "w"  # name')
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    dotted = [name for name in names if draw(st.booleans())]
    if dotted:
        put("[mounts]")
    for name in dotted:
        source = draw(st.sampled_from(SOURCES))
        if draw(st.booleans()):
            put(f"{toml_string(name)} = {toml_value(source.keys())} # inline")
        else:
            for key, value in source.keys().items():
                put(f"{toml_string(name)}.{key} = {toml_string(value)}")
    for name in names:
        if name not in dotted:
            put(f"[mounts.{toml_string(name)}]")
            for key, value in draw(st.sampled_from(SOURCES)).keys().items():
                put(f"  {key} = '{value}' # of {key}")
        if draw(st.booleans()):
            put(f"[services.s{len(lines)}]", "run = '''", "[mounts.x]'''")
    put()
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    return text + draw(st.sampled_from(["", "\n"]))


def comments(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("#")]


@settings(max_examples=250, deadline=None)
@given(files(), st.sampled_from(SOURCES))
def test_attach_then_detach_is_as_before(text: str, source: Source) -> None:
    attached = attach(text, "new/one", source)
    document = tomllib.loads(text)
    wanted = {**document, "mounts": {**document.get("mounts", {}), "new/one": source.keys()}}
    assert tomllib.loads(attached) == wanted
    assert comments(attached) == comments(text)
    back = detach(attached, "new/one")
    assert [line for line in back.splitlines() if line.strip()] == [line for line in text.splitlines() if line.strip()]


@settings(max_examples=250, deadline=None)
@given(files(), st.sampled_from(SOURCES), st.data())
def test_replace_and_detach_change_one_entry(text: str, source: Source, data: st.DataObject) -> None:
    document = tomllib.loads(text)
    if not document.get("mounts"):
        return
    path = data.draw(st.sampled_from(sorted(document["mounts"])))
    replaced = replace(text, path, source)
    assert tomllib.loads(replaced) == {**document, "mounts": {**document["mounts"], path: source.keys()}}
    assert [line for line in comments(text) if line not in comments(replaced)] == []
    detached = tomllib.loads(detach(text, path))
    del document["mounts"][path]
    assert detached.pop("mounts", {}) == document.pop("mounts")
    assert detached == document


def test_normal_path() -> None:
    assert [normal_path(path) for path in ("./lib//x/", "lib", "../x", "//a", "")] == ["lib/x", "lib", "../x", "/a", ""]


# Saving


def test_save_keeps_the_mode_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "Clive.toml"
    file.write_text("a = 1\r\n", newline="")
    file.chmod(0o640)
    save(file, "a = 1\r\n", "a = 2\r\n")
    assert file.read_bytes() == b"a = 2\r\n"
    assert file.stat().st_mode & 0o7777 == 0o640
    assert os.listdir(tmp_path) == ["Clive.toml"]


def test_save_refuses_what_changed_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "Clive.toml"
    file.write_text("theirs = 1\n")
    with pytest.raises(ClivefsError, match="changed meanwhile"):
        save(file, "a = 1\n", "a = 2\n")
    assert file.read_text() == "theirs = 1\n"
    assert os.listdir(tmp_path) == ["Clive.toml"]


def test_a_failing_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "Clive.toml"
    file.write_text("a = 1\n")

    def fail() -> None:
        raise OSError("planted")

    FAULTS.plant("config.save.rename", fail)
    try:
        with pytest.raises(OSError, match="planted"):
            save(file, "a = 1\n", "a = 2\n")
    finally:
        FAULTS.clear()
    assert file.read_text() == "a = 1\n"
    assert os.listdir(tmp_path) == ["Clive.toml"]


_SAVE = """
import os, sys
from clivefs.base.ports import FAULTS
from clivefs.mounts.config.file import save
FAULTS.plant(sys.argv[1], lambda: os._exit(9))
save(sys.argv[2], "a = 1\\n", "a = 2\\n")
"""


@pytest.mark.parametrize("point", ["config.save.rename", "wholefile.named"])
def test_a_killed_save_leaves_nothing_that_the_next_mount_does_not_remove(tmp_path: Path, point: str) -> None:
    file = tmp_path / "Clive.toml"
    file.write_text("a = 1\n")
    ended = subprocess.run([sys.executable, "-c", _SAVE, point, str(file)], check=False)
    assert ended.returncode == 9
    assert file.read_text() == "a = 1\n"
    left = [os.fsencode(name) for name in os.listdir(tmp_path) if name != "Clive.toml"]
    assert len(left) == (1 if point == "wholefile.named" else 0)
    assert all(is_never(name) for name in left)
    (tmp_path / "user.new").touch()
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        sweep(dir_fd)
    finally:
        os.close(dir_fd)
    assert sorted(os.listdir(tmp_path)) == ["Clive.toml", "user.new"]
    save(file, "a = 1\n", "a = 2\n")
    assert file.read_text() == "a = 2\n"


def test_where_every_file_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without O_TMPFILE."""
    real = os.open

    def named(path: str | bytes, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", named)
    create(tmp_path / "x", "one")
    with pytest.raises(FileExistsError):
        create(tmp_path / "x", "two")
    save(tmp_path / "x", "one", "two")
    with pytest.raises(ClivefsError, match="changed meanwhile"):
        save(tmp_path / "x", "one", "three")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "two")]


def test_save_follows_no_link_and_makes_no_file(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("a = 1\n")
    (tmp_path / "Clive.toml").symlink_to("real")
    with pytest.raises(ClivefsError, match="symbolic link"):
        save(tmp_path / "Clive.toml", "a = 1\n", "a = 2\n")
    with pytest.raises(ClivefsError, match="no such file"):
        save(tmp_path / "none", "", "a = 2\n")
    assert sorted(os.listdir(tmp_path)) == ["Clive.toml", "real"]
    assert real.read_text() == "a = 1\n"


def test_concurrent_edits_all_arrive(tmp_path: Path) -> None:
    file = tmp_path / "Clive.toml"
    create(file, "# shared\n")

    def add(number: int) -> None:
        while True:
            old = file.read_text()
            try:
                save(file, old, attach(old, f"m{number}", SIX))
                return
            except ClivefsError:
                continue

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.path for entry in load(file).mounts) == [f"m{number}" for number in range(8)]


def test_create_never_overwrites(tmp_path: Path) -> None:
    create(tmp_path / "x", "one")
    with pytest.raises(FileExistsError):
        create(tmp_path / "x", "two")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]


# init


def test_init(tmp_path: Path) -> None:
    made = init_workspace(str(tmp_path / "deep" / "shop"))
    assert (made.root, made.name) == (str(tmp_path / "deep" / "shop"), "shop")
    found = load(tmp_path / "deep" / "shop" / "Clive.toml")
    assert (found.name, found.mounts) == ("shop", ())
    with pytest.raises(ClivefsError, match="is a workspace already"):
        init_workspace(made.root)
    example = "".join(
        line[4:] for line in Path(made.written[0]).read_text().splitlines(keepends=True) if line.startswith("#   ")
    )
    assert [entry.path for entry in parse(example, file="f", root="/r/s").mounts] == ["lib/requests", "data"]


def test_init_tells_git_to_ignore_the_control_directory_once(tmp_path: Path) -> None:
    ignore = tmp_path / ".gitignore"
    ignore.write_text("*.o")
    assert init_workspace(str(tmp_path), "w").written == (str(tmp_path / "Clive.toml"), str(ignore))
    assert ignore.read_text() == "*.o\n.clive/\n"
    (tmp_path / "Clive.toml").unlink()
    assert init_workspace(str(tmp_path), "w").written == (str(tmp_path / "Clive.toml"),)
    assert ignore.read_text() == "*.o\n.clive/\n"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\nb"])
def test_init_refuses_a_bad_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClivefsError):
        init_workspace(str(tmp_path), name)
    assert os.listdir(tmp_path) == []
