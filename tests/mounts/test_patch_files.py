"""Which files the patterns of `patches` name, where they are looked for, and what watches tell of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clivefs.mounts.host import watch as watching
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.ownfiles import HostFiles
from clivefs.mounts.ownwatch import OwnWatch, watched_places
from clivefs.mounts.patch import files as patchfiles
from clivefs.mounts.patch.files import Series, read_series


def series(root: Path, *patterns: str) -> Series:
    return read_series(HostFiles(str(root), lambda directory, name: False), str(root), patterns)


def names(root: Path, *patterns: str) -> list[str]:
    found = series(root, *patterns)
    assert found.error is None, found.error
    return [name for name, _ in found.patches]


def fill(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def test_in_the_order_of_the_patterns_and_none_twice(tmp_path: Path) -> None:
    fill(
        tmp_path, "p/2.patch", "p/10.patch", "p/1.patch", "p/.hidden.patch", "p/x.diff", "q/a/1.patch", "q/a/b/2.patch"
    )
    assert names(tmp_path, "p/*.patch") == ["p/1.patch", "p/10.patch", "p/2.patch"]
    assert names(tmp_path, "p/2.patch", "p/*.patch") == ["p/2.patch", "p/1.patch", "p/10.patch"]
    assert names(tmp_path, "q/**/*.patch", "q/**") == ["q/a/1.patch", "q/a/b/2.patch"]
    assert names(tmp_path, "p/.*.patch") == ["p/.hidden.patch"]
    assert names(tmp_path, "[pq]/[!1].patch") == ["p/2.patch"]
    assert names(tmp_path, "none/*.patch", "*") == []
    assert "no such patch" in str(series(tmp_path, "p").error)  # a directory is none


def test_links_stay_inside_and_end(tmp_path: Path) -> None:
    root = fill(tmp_path / "w", "p/1.patch")
    (tmp_path / "out.patch").write_text("secret")
    os.symlink("p", root / "linked")
    os.symlink(root / "p" / "1.patch", root / "whole.patch")
    os.symlink("loop", root / "loop")
    assert names(root, "linked/*.patch", "whole.patch") == ["linked/1.patch", "whole.patch"]
    assert names(root, "**/*.patch") == ["p/1.patch", "whole.patch"]
    for target in ("../out.patch", str(tmp_path / "out.patch"), "p/../../out.patch"):
        os.symlink(target, root / "leads.patch")
        found = series(root, "p/*.patch", "leads.patch", "whole.patch")
        assert [name for name, _ in found.patches] == ["p/1.patch"]
        assert "must lie in the workspace" in str(found.error)
        os.unlink(root / "leads.patch")
    assert "no such patch" in str(series(root, "loop").error)


def test_what_cannot_be_read_ends_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "1.patch", "2.patch", "3.patch")
    monkeypatch.setattr(patchfiles, "PATCH_BYTES_MAX", 7)
    (tmp_path / "2.patch").write_text("too long")
    found = series(tmp_path, "*.patch")
    assert [name for name, _ in found.patches] == ["1.patch"]
    assert "2.patch: the patch is larger" in str(found.error)
    monkeypatch.setattr(patchfiles, "PATCHES_MAX", 1)
    (tmp_path / "2.patch").write_text("")
    assert "more than 1 patches" in str(series(tmp_path, "*.patch").error)


def test_the_digest_tells_names_order_and_content_apart(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    digests = {series(tmp_path, *each).digest for each in (("a",), ("b",), ("a", "b"), ("b", "a"), ("a", "c"), ())}
    assert len(digests) == 6
    before = series(tmp_path, "a").digest
    stat = os.stat(tmp_path / "a")
    (tmp_path / "a").write_text("x")
    os.utime(tmp_path / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert series(tmp_path, "a").digest != before


def test_watches_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = HostFiles(str(tmp_path), lambda directory, name: False)
    fill(tmp_path, "p/1.patch")
    watcher = Watcher()
    events: list[bool] = []
    watch = OwnWatch(watcher, files, events.append)
    looked = series(tmp_path, "p/*.patch").looked
    assert looked is not None

    def watch_all() -> None:
        places = watched_places(files, looked)
        for each in watch.keep(places):
            watch.add(each, places[each])

    watch_all()
    assert watch.complete
    (tmp_path / "other").write_text("")  # nobody has asked for that
    assert watcher.read_events() == []
    assert events == []
    with open(tmp_path / "p" / "1.patch", "a") as file:
        file.write("x")
        file.flush()
        watcher.read_events()
        assert events == [False]
    watcher.read_events()
    assert events == [False, True]
    os.rename(tmp_path / "p", tmp_path / "q")
    watcher.read_events()
    assert events[2:] == [True]
    watch_all()
    (tmp_path / "q" / "1.patch").write_text("")
    watcher.read_events()
    assert events[3:] == []

    def refused(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.rename(tmp_path / "q", tmp_path / "p")
    monkeypatch.setattr(watching, "inotify_add", refused)
    watch_all()
    assert not watch.complete
    assert watcher.degraded
    watch.close()
    assert not watcher.degraded
    watcher.close()
