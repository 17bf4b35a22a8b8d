"""The world of the tests of what a collection does with repositories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.ports import FAULTS
from clivefs.mounts.points.objects import kept_repositories
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.points.repositoryworlds import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A `World` that `fsck` has to find whole in the end."""
    with Store.open(tmp_path / "store") as store:
        yield World(tmp_path, store)
        FAULTS.clear()
        assert fsck(store, extra=kept_repositories(store), roots=StoreRoots(store).fresh()) == []
