"""What a purge takes for a mention of what it removes."""

from __future__ import annotations

import pytest

from clivefs.mounts.points.mentions import Mentions

MENTIONS = Mentions(b"conf/.env", [b"# ours\nTOKEN='abcdef-123456'\nx=1\n", b"\0" * 100_000])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("run: cp a conf/.env", True),
        ("run: cp a ./conf/.env.old", True),
        ("run: cp a myconf/.env", False),
        ("run: cp a conf/.environment", False),
        ("run: ./setup --token abcdef-123456 --fast", True),
        ("run: ours x=1 TOKEN", False),
        ("", False),
    ],
)
def test_texts(text: str, expected: bool) -> None:
    assert MENTIONS.in_text(text) is expected


def test_an_audit_forgets_the_path_and_the_command_that_wrote_there() -> None:
    mentions = Mentions(b"conf")
    audit = {
        "command": "./setup",
        "status": 0,
        "read": ["conf/a", "conf", "confetti"],
        "listed": [],
        "missing": ["x"],
        "written": [],
        "removed": [],
        "more": 0,
    }
    assert mentions.without(audit) == {**audit, "read": ["confetti"]}
    audit["written"] = ["conf/b", "main.c"]
    assert mentions.without(audit) == {**audit, "command": "", "read": ["confetti"], "written": ["main.c"]}
    assert Mentions(b"other").without(audit) == audit
