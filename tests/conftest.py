"""What all tests share: when tests that mount for real may be skipped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

FUSE_DEVICE = "/dev/fuse"
IN_CI = os.environ.get("CI") == "true"

# Some machines are told to keep no bytecode. The tests start thousands of processes of clivefs, and each would compile
# it anew: half of all the time that they take.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# A busy machine is no fault of what is tested.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what runs in the background with SIGINT ignored, and that is inherited: some tests send it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    """A test that sets the umask, as the daemon does, sets it for itself alone."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that mount are skipped only where the device is missing."""
    if os.path.exists(FUSE_DEVICE):
        return
    for item in items:
        if item.get_closest_marker("mount") is not None:
            item.add_marker(pytest.mark.skip(reason=f"{FUSE_DEVICE} is missing"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove directories that are too deep for whoever removes what old runs have left."""
    factory = getattr(session.config, "_tmp_path_factory", None)
    base = getattr(factory, "_basetemp", None)
    if base is None or not base.exists():
        return
    deep = subprocess.run(
        ["find", str(base), "-xdev", "-mindepth", "100", "-type", "d", "-prune", "-print0"],
        capture_output=True,
        check=False,
    ).stdout
    tops = {os.sep.join(path.decode(errors="surrogateescape").split(os.sep)[:8]) for path in deep.split(b"\0") if path}
    for top in tops:
        subprocess.run(["rm", "-rf", "--one-file-system", top], check=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a mount test that was skipped, for whatever reason, has failed."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("mount") is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where mount tests must run: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_unexpected_warnings(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """A warning that the product logged and the test did not expect (marker `warns`) is a failure."""
    yield
    if request.node.get_closest_marker("warns") is not None:
        return
    logged = [
        f"{record.name}: {record.getMessage()}"
        for record in caplog.get_records("call")
        if record.levelno >= logging.WARNING and record.name.startswith("clivefs")
    ]
    assert not logged, "logged, and not expected: " + "; ".join(logged)
