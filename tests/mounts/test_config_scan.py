"""Lines of keys: found for everything that tomllib reads, at the right place."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.config.errors import KeyPath
from clivefs.mounts.config.scan import ScanError, TooDeep, lines_of, scan

TEXT = '''\
# comment = 1
top = 1  # top2 = 3
[a.b]  # [no]
"quo\\u0074ed.key" = """
[not.a.header]
x = 1 \\""" y
""""
'lit.eral' = \'\'\'
[neither]'\'\'\'
arr = [ # comment ]
  1, [2, "]"],
  { p = 1, q.r = "}" },
]
dot . "ted" = 1979-05-27 07:32:00

[a]
  indented = "\\"#"
[[t]]
v = 1
[t.sub]
w = 1
[[t]]
v = { x = [
  1,
  2] }
e = ""
'''


def test_lines() -> None:
    lines = lines_of(scan(TEXT))
    expected: dict[KeyPath, int] = {
        ("top",): 2,
        ("a",): 16,
        ("a", "b"): 3,
        ("a", "b", "quoted.key"): 4,
        ("a", "b", "lit.eral"): 8,
        ("a", "b", "arr"): 10,
        ("a", "b", "arr", 0): 11,
        ("a", "b", "arr", 1): 11,
        ("a", "b", "arr", 1, 0): 11,
        ("a", "b", "arr", 1, 1): 11,
        ("a", "b", "arr", 2): 12,
        ("a", "b", "arr", 2, "p"): 12,
        ("a", "b", "arr", 2, "q"): 12,
        ("a", "b", "arr", 2, "q", "r"): 12,
        ("a", "b", "dot"): 14,
        ("a", "b", "dot", "ted"): 14,
        ("a", "indented"): 17,
        ("t",): 18,
        ("t", 0): 18,
        ("t", 0, "v"): 19,
        ("t", 0, "sub"): 20,
        ("t", 0, "sub", "w"): 21,
        ("t", 1): 22,
        ("t", 1, "v"): 23,
        ("t", 1, "v", "x"): 23,
        ("t", 1, "v", "x", 0): 24,
        ("t", 1, "v", "x", 1): 25,
        ("t", 1, "e"): 26,
    }
    assert lines == expected
    assert set(lines) == set(paths(tomllib.loads(TEXT)))
    assert lines_of(scan(TEXT.replace("\n", "\r\n"))) == expected


def paths(value: Any, at: KeyPath = ()) -> list[KeyPath]:
    """The path of everything in *value*."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [found for key, inner in items for found in [(*at, key), *paths(inner, (*at, key))]]


def test_values_and_statements_are_whole() -> None:
    for statement in scan(TEXT):
        text = TEXT[statement.start : statement.end]
        assert text.endswith("\n")
        if statement.value is not None:
            assert TEXT[statement.value.start : statement.value.end].strip()
            tomllib.loads(f"x = {TEXT[statement.value.start : statement.value.end]}")


def test_too_deep() -> None:
    with pytest.raises(TooDeep) as caught:
        scan("a = 1\nb = [\n" + "[" * 20)
    assert caught.value.line == 3
    with pytest.raises(TooDeep):
        scan(".".join("a" * 17) + " = 1")
    assert len(scan(".".join("a" * 16) + " = 1")) == 1


def test_a_large_string_is_quick_and_whole() -> None:
    text = 'a = """' + "x\\\\y\n" * 200_000 + '"""\nb = "' + '\\"' * 100_000 + '"\n'
    assert [statement.line for statement in scan(text)] == [1, 200_002]


PIECES = [
    "a",
    "b.c",
    "'d'",
    '"e"',
    " = ",
    "1",
    "'x'",
    '"""',
    "'''",
    "[",
    "]",
    "{",
    "}",
    ",",
    "#",
    "\n",
    "\r\n",
    "\\",
    '"',
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_whatever_tomllib_reads_is_scanned_whole(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        with suppress(ScanError, TooDeep):
            scan(text)
        return
    assert set(lines_of(scan(text))) == set(paths(document))
