"""Repositories of the store that no entry names any more: the past stays readable, and then disk comes back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Bench

from clivefs.objects.store import Store

pytestmark = pytest.mark.mount

DAY_MS = 86_400_000
KEEP_NOTHING = '\n[sessions]\nkeep = { all = "0s", hourly = "0s", daily = "0s", yearly = "0s" }\n'


def snapshot(bench: Bench) -> str:
    return str(json.loads(bench.cli("snapshot", "--json").stdout)["name"])


def collect(bench: Bench, *more: str) -> dict[str, str]:
    """What became of each repository and gitdir, by the directory that it is in."""
    found: dict[str, Any] = json.loads(bench.cli("gc", "--json", *more).stdout)
    return {each["path"].partition("/")[0]: each["state"] for each in found["repositories"]}


def a_month_goes_by(bench: Bench) -> None:
    """For what collections have noted."""
    with Store.open(bench.store, create=False) as store:
        records = [key for key, _ in store.meta_items("repositories") if key.startswith(b"since/")]
        assert records
        with store.batch() as batch:
            for key in records:
                since_ms = time.time_ns() // 1_000_000 - 31 * DAY_MS
                batch.meta_put("repositories", key, str(since_ms).encode())


def repositories(bench: Bench) -> list[Path]:
    return list(bench.store.glob("repositories/*.git"))


def test_the_past_stays_readable_after_its_entry_is_gone(shop: Bench) -> None:
    """Beside a daemon that goes on."""
    assert (shop.live / "lib/thing/README").read_text() == "hello\n"
    (shop.live / "lib/thing/src/a.c").write_text("int edited;\n")
    (shop.live / "lib/thing/src/a.c").unlink()
    (shop.live / "lib/thing/src/a.c").write_text("int a;\n")
    old = snapshot(shop)
    assert collect(shop) == {"repositories": "named"}
    shop.cli("detach", "lib/thing")
    snapshot(shop)
    assert collect(shop) == {"repositories": "waiting", "gitdirs": "waiting"}
    a_month_goes_by(shop)
    # The gitdir says what the edits are based on.
    assert collect(shop) == {"repositories": "borrowed", "gitdirs": "work"}
    assert "it has work of yours" in shop.cli("gc").stderr
    shop.cli("attach", "lib/thing", "git+../thing@main")
    shop.cli("overlay", "reset", "lib/thing")
    shop.cli("detach", "lib/thing")
    collect(shop)
    a_month_goes_by(shop)
    assert collect(shop, "--dry-run") == {"repositories": "past", "gitdirs": "removed"}
    assert collect(shop) == {"repositories": "past", "gitdirs": "removed"}
    then = shop.live / ".clive/at" / old
    assert (then / "lib/thing/README").read_text() == "hello\n"
    assert (then / "lib/thing/src/a.c").read_text() == "int a;\n"
    shop.check_sound()


def test_a_repository_that_nothing_needs_goes_and_comes_again(shop: Bench) -> None:
    assert (shop.live / "lib/thing/README").read_text() == "hello\n"
    assert shop.git("status", "--short", cwd=shop.live / "lib/thing") == ""
    snapshot(shop)
    (kept,) = repositories(shop)
    shop.cli("detach", "lib/thing")
    config = shop.root / "Clive.toml"
    config.write_text(config.read_text() + KEEP_NOTHING)
    # A reader of the past, which has the repository open: it bears that it goes.
    assert (shop.live / ".clive/at" / snapshot(shop) / "plain.txt").read_text() == "plain\n"
    assert collect(shop) == {"repositories": "waiting", "gitdirs": "waiting"}
    a_month_goes_by(shop)
    assert collect(shop) == {"repositories": "removed", "gitdirs": "removed"}
    assert not kept.exists()
    assert collect(shop) == {}
    (shop.live / "plain.txt").write_text("new\n")
    assert (shop.live / ".clive/at" / snapshot(shop) / "plain.txt").read_text() == "new\n"
    shop.cli("attach", "lib/thing", "git+../thing@main")
    assert (shop.live / "lib/thing/src/deep/b.c").read_text() == "int b;\n"
    assert shop.git("status", "--short", cwd=shop.live / "lib/thing") == ""
    assert (shop.live / ".clive/at" / snapshot(shop) / "lib/thing/README").read_text() == "hello\n"
    assert repositories(shop) == [kept]
    shop.check_sound()
