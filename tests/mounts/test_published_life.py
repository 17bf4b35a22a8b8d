"""Published modules while things go wrong: ended, failing and changing half-way, and by many at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.published import clients as packageclients
from clivefs.mounts.published.clients import PackageClients
from clivefs.mounts.published.source import PublishedSource
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.archiveworlds import COMPRESSIONS, File, tar_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        assert fsck(opened) == []
        FAULTS.clear()
        packageclients.start_again()
        downloads = Path(opened.path) / "downloads"
        assert not downloads.exists() or os.listdir(downloads) == []


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "thing.tar.gz"
    path.write_bytes(COMPRESSIONS["gz"](tar_of({b"t/%d" % number: File(b"%d" % number) for number in range(2000)})))
    return path


def source(store: Store, path: Path, **more: object) -> PublishedSource:
    return PublishedSource("archive", path.name, store=store, host_path=str(path), **more)  # type: ignore[arg-type]


def test_an_archive_that_changes_while_it_is_read(store: Store, packed: Path) -> None:
    def progress(text: str) -> None:
        if "unpacking" in text:
            with open(packed, "ab") as file:
                file.write(bytes(100))

    with pytest.raises(ClivefsError, match="written to while it was read"):
        source(store, packed, progress=progress).open()
    assert store.refs() == {}
    assert list(store.meta_items("published")) == []
    assert source(store, packed).open().files == 2001


def test_a_failure_before_anything_is_stored_leaves_nothing(store: Store, packed: Path) -> None:
    def fail() -> None:
        raise OSError(28, os.strerror(28))

    FAULTS.plant("published.archive.accepted", fail)
    with pytest.raises(OSError, match="No space left"):
        source(store, packed).open()
    assert list(store.names()) == []
    FAULTS.clear()
    assert source(store, packed).open().files == 2001


def test_many_threads_that_want_the_same(store: Store, packed: Path) -> None:
    opened = []
    threads = [threading.Thread(target=lambda: opened.append(source(store, packed).open())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    assert len(set(opened)) == 1
    assert len(store.refs()) == 1


def test_clients_are_ended_with_the_daemon(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "npm"
    started = tmp_path / "started"
    script.write_text(f"#!/bin/sh\necho $$ > {started}.new && mv {started}.new {started}\nsleep 600 & wait\n")
    script.chmod(0o755)
    failures: list[str] = []

    def fetch() -> None:
        try:
            PublishedSource("npm", "thing@1.0.0", store=store, clients=PackageClients(npm=str(script))).open()
        except ClivefsError as error:
            failures.append(str(error))

    thread = threading.Thread(target=fetch)
    thread.start()
    while not started.exists():
        thread.join(0.01)
        assert thread.is_alive()
    pid = started.read_text().strip()
    packageclients.end_all()
    thread.join(20)
    assert not thread.is_alive()
    assert "ended with the daemon" in failures[0]
    started.unlink()
    fetch()
    assert "ended with the daemon" in failures[1]
    assert not started.exists()
    assert not Path(f"/proc/{pid}").exists()
