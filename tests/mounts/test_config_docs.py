"""docs/clive-toml.md lists exactly the keys, types and defaults that there are, and its examples are right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from clivefs.mounts.config.config import (
    Keep,
    Limits,
    MountEntry,
    Peer,
    Reactor,
    Rule,
    Service,
    Sessions,
    Workspace,
    parse,
)
from clivefs.mounts.config.schema import TABLES

PAGE = (Path(__file__).parents[2] / "docs" / "clive-toml.md").read_text()
HEADING = re.compile(r"^###? `\[(.+)\]`$", re.MULTILINE)
SECTIONS = {
    found.group(1).replace('"', ""): re.split(r"^#", PAGE[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    for found in HEADING.finditer(PAGE)
}
STRUCTURES = {
    "mounts.PATH": MountEntry,
    "rules.NAME": Rule,
    "services.NAME": Service,
    "sessions": Sessions,
    "sessions.keep": Keep,
    "peers.NAME": Peer,
    "reactor": Reactor,
    "limits": Limits,
}


def rows(section: str) -> list[list[str]]:
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    assert lines[0] == "| key | type | default | meaning | example |"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_has_the_tables_of_the_schema() -> None:
    assert list(SECTIONS) == list(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_the_keys_of_the_schema(table: str) -> None:
    listed = [(cells[0], cells[1], cells[2]) for cells in rows(table)]
    assert listed == [(f"`{key.name}`", key.type, key.default or "required" * key.required) for key in TABLES[table]]


@pytest.mark.parametrize("table", TABLES)
def test_every_key_has_a_meaning_and_an_example_that_is_read(table: str) -> None:
    for (name, _, _, meaning, example), key in zip(rows(table), TABLES[table], strict=True):
        assert meaning
        given = tomllib.loads(example.strip("`"))
        assert list(given) == [name.strip("`")]
        key.read(given[key.name])


@pytest.mark.parametrize("table", STRUCTURES)
def test_the_structures_hold_every_key(table: str) -> None:
    fields = set(STRUCTURES[table].__struct_fields__)
    kinds = {"local", "git", "pypi", "npm", "archive"}
    own = {"line", "name", "path", "kind", "location", "host_path"}
    assert {key.name for key in TABLES[table]} - kinds == fields - own


def test_the_defaults_on_the_page_are_the_real_ones() -> None:
    """What the page calls the default changes nothing when it is written."""
    start = (
        "[mounts.g]\ngit = 'https://h/x'\n[mounts.l]\nlocal = '../l'\n[rules.r]\nrun = 'x'\noutputs = ['o']\n"
        "inputs = ['i']\n[services.s]\nrun = 'x'\n[peers.p]\nkey = '" + example("peers.NAME", "key") + "'\n"
    )
    text = start.replace(
        "[mounts.g]\n", '[mounts.g]\npatches = []\nwrite = "overlay"\nfollow = false\ngit_dir = true\n'
    )
    text = text.replace("[mounts.l]\n", '[mounts.l]\nwrite = "through"\n').replace(
        "[rules.r]\n", '[rules.r]\nmode = "eager"\n'
    )
    text = text.replace("[services.s]\n", "[services.s]\ninputs = []\n").replace(
        "[peers.p]\n", '[peers.p]\nallow = ["read"]\n'
    )
    for table in ("sessions", "sessions.keep", "reactor", "limits"):
        pairs = [(key.name, re.match(r"`(.+?)`", key.default)) for key in TABLES[table]]
        text += f"[{table}]\n" + "".join(f"{name} = {found.group(1)}\n" for name, found in pairs if found)
    text += '[workspace]\nwrite = "through"\n'
    assert "archive_ratio = 1000" in text
    assert without_lines(parse(text, file="f", root="/r/s")) == without_lines(parse(start, file="f", root="/r/s"))


def example(table: str, name: str) -> str:
    cell = next(cells[4] for cells in rows(table) if cells[0] == f"`{name}`")
    return str(tomllib.loads(cell.strip("`"))[name])


def without_lines(workspace: Workspace) -> str:
    return re.sub(r"line=\d+", "", repr(workspace))
