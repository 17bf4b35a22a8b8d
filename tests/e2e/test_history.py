"""What the command line tells of the past: `log`, `show` and `diff`."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from faults import planted
from harness import Bench, fill_sample, write_files
from test_sessions import points, snapshot


def newest(bench: Bench) -> str:
    snapshot(bench)
    return f"@{points(bench)[0]['seq']}"


def listed(bench: Bench, *args: object) -> list[dict[str, Any]]:
    return list(json.loads(bench.cli("log", *args, "--json", check=False).stdout))


@pytest.fixture
def noted(bench: Bench) -> Bench:
    """Things that git does not know, each in a point of its own: what is changed while nothing is mounted is one."""
    fill_sample(bench)
    (bench.root / "kinds/empty").mkdir(parents=True)
    bench.mount()
    snapshot(bench)
    bench.unmount()
    os.mkfifo(bench.root / "kinds/pipe")
    (bench.root / "kinds/pipe").chmod(0o644)  # whatever the umask is
    write_files(bench.root, {"kinds/secret": "secret\n"})
    bench.mount()
    snapshot(bench)
    (bench.live / "kinds/secret").chmod(0o600)
    return bench


def test_what_git_does_not_know_has_a_past(noted: Bench) -> None:
    last = newest(noted)
    for path, count in (("kinds", 3), ("kinds/empty", 1), ("kinds/pipe", 1), ("kinds/secret", 2)):
        assert len(listed(noted, path)) == count, path
    told = noted.cli("log", "-p", "-n", "1", "kinds").stdout
    assert told.splitlines()[1:] == ["M kinds/secret", ""]
    assert noted.cli("show", last).stdout.splitlines()[3:] == ["M kinds/secret"]
    assert "A kinds/empty\n" in noted.cli("show", listed(noted, "kinds/empty")[0]["id"]).stdout
    assert "A kinds/pipe\n" in noted.cli("show", listed(noted, "kinds/pipe")[0]["id"]).stdout
    assert noted.cli("show", f"{last}:kinds").stdout.splitlines() == ["empty/", "pipe", "secret"]
    assert noted.cli("show", f"{last}:kinds/empty").stdout == ""
    found = json.loads(noted.cli("show", f"{last}:kinds", "--json").stdout)
    assert [(each["name"], each["mode"]) for each in found] == [
        ("empty", "040000"),
        ("pipe", "010644"),
        ("secret", "100644"),
    ]
    pipe = noted.cli("show", f"{last}:kinds/pipe", check=False)
    assert pipe.returncode == 1
    assert "it has no content" in pipe.stderr
    noted.check_sound()


def test_a_session_that_there_is_not(shop: Bench) -> None:
    snapshot(shop)
    wrong = shop.cli("log", "--session", "nightly", check=False)
    assert wrong.returncode == 1
    assert "there is no session 'nightly'" in wrong.stderr
    assert points(shop)[0]["session"] in wrong.stderr
    shop.check_sound()


def test_diff_of_a_path_that_is_gone(shop: Bench) -> None:
    snapshot(shop)
    write_files(shop.live, {"passing/note": "a\n"})
    before = newest(shop)
    (shop.live / "passing/note").unlink()
    (shop.live / "passing").rmdir()
    for path in ("passing", "passing/note", "./passing/note"):
        assert shop.cli("diff", before, path, "--stat").stdout == "D passing/note\n", path
    assert shop.cli("diff", "./passing/note").stdout == ""
    refused = shop.cli("diff", "@1", before, "@99", check=False)  # and not a path that nobody has
    assert (refused.returncode, "moment" in refused.stderr) == (2, True)
    refused = shop.cli("show", "2001-02-03T04:05:06+02:00", check=False)
    assert (refused.returncode, "before the first point" in refused.stderr) == (1, True)
    wrong = shop.cli("diff", before, "pasing/note", check=False)
    assert wrong.returncode == 1
    assert "'pasing/note' is neither a time nor a point nor a session" in wrong.stderr
    shop.check_sound()


def test_what_git_tracks_from_now_on_is_in_the_next_point(shop: Bench) -> None:
    """Though an ignore rule matches it, and nobody writes to it."""
    shop.run("git init -q . && echo '*.o' > .gitignore && echo 1 > a.o && echo 2 > b.o")
    assert not (snapshot(shop) / "a.o").exists()
    shop.run("git add -f a.o")
    point = snapshot(shop)
    assert (point / "a.o").read_text() == "1\n"
    assert not (point / "b.o").exists()
    commit = "git -c user.name=a -c user.email=a@example.org commit -q -m"
    shop.run(f"git add . && {commit} one && git rm -q a.o && {commit} two")
    assert not (snapshot(shop) / "a.o").exists()
    shop.run("git checkout -q HEAD~1")
    assert (snapshot(shop) / "a.o").read_text() == "1\n"
    shop.check_sound()


def test_a_slow_save_is_one_point(bench: Bench) -> None:
    """Of a new file as well; and in a directory that is written through too, whose own events tell of the file while it
    is empty."""
    fill_sample(bench)
    # No file counts as open for long, however long the machine takes here.
    patience = "import clivefs.daemon.recording\nclivefs.daemon.recording._OPEN_S = 3600.0"
    bench.mount(env=planted(bench.base / "planted", patience))
    for name in ("plain.txt", "over/one.txt", "new", "over/new"):
        before = snapshot(bench)
        with open(bench.live / name, "w") as file:
            time.sleep(0.5)
            file.write("half")
            file.flush()
            time.sleep(0.5)
            file.write(" whole\n")
        told = listed(bench, "--since", before.name, name)
        assert [(bench.live / ".clive/at" / each["name"] / name).read_text() for each in told] == ["half whole\n"]
    bench.check_sound()
