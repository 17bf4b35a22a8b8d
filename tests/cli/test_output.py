"""Names in any encoding, control characters, tables."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.cli.call import Call
from clivefs.cli.going import told
from clivefs.cli.output import Output, portable, table, visible
from clivefs.cli.surroundings import Surroundings


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_any_name_survives_json(name: bytes) -> None:
    value = json.loads(json.dumps(portable([{"path": os.fsdecode(name)}])))[0]
    (key,) = value
    restored = base64.b64decode(value[key]) if key == "path_b64" else value[key].encode()
    assert restored == name


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert visible("a\x1b[2Jb\nc\x9b") == "a\\x1b[2Jb\\x0ac\\x9b"
    assert visible("grün \udcff") == "grün \udcff"


def test_an_error_keeps_its_lines_but_no_escapes() -> None:
    err = io.StringIO()
    Output(io.StringIO(), err, as_json=False).error(ClivefsError("bad \x1b name", place="p", remedy="do"))
    assert err.getvalue() == "clivefs: p: bad \\x1b name\n  do\n"


def test_what_is_left_alone_is_a_line_for_each_name() -> None:
    err = io.StringIO()
    call = Call(argparse.Namespace(), Surroundings({}, "/", "/", 0), Output(io.StringIO(), err, as_json=False))
    refused = [{"path": "a\nb", "why": "read-only"}, {"path": "c", "why": "read-only"}]
    result = {"point": {"name": "P"}, "changes": [], "refused": refused, "not_owned": ["d\ne"], "dry_run": False}
    assert told(call, result, "undo") == 1
    assert err.getvalue() == (
        "left alone: a\\x0ab: read-only\nleft alone: c: read-only\n"
        "not with the owner of then, which only root can give: d\\x0ae\n"
    )


def test_with_json_there_are_no_lines_for_people() -> None:
    out = io.StringIO()
    output = Output(out, io.StringIO(), as_json=True)
    output.line("for people")
    output.json({"a": 1})
    assert json.loads(out.getvalue()) == {"a": 1}


def test_progress_only_on_a_terminal() -> None:
    err = io.StringIO()
    output = Output(io.StringIO(), err, as_json=False)
    output.progress("half")
    output.flush()
    assert err.getvalue() == ""


def test_columns_stand_below_each_other() -> None:
    assert table([["a", "bb", "c"], ["aaa", "b", ""]]) == ["a    bb  c", "aaa  b"]
    assert table([]) == []
