"""Published modules: fetched once by the real clients, pinned, and opened from the store ever after."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.published import fetch
from clivefs.mounts.published.archive import ArchiveError, ArchiveLimits
from clivefs.mounts.published.clients import PackageClients, near_versions
from clivefs.mounts.published.source import REF_PREFIX, Published, PublishedSource
from clivefs.mounts.tree import Owner
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.archiveworlds import COMPRESSIONS, File, Link, tar_of, zip_of

TREE = {b"thing-1.0/a": File(b"text"), b"thing-1.0/bin/run": File(b"#!", True), b"thing-1.0/l": Link(b"bin/run")}
NO_CLIENT = PackageClients(python="/nonexistent/python", npm="/nonexistent/npm")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        assert fsck(opened) == []
        downloads = Path(opened.path) / "downloads"
        assert not downloads.exists() or os.listdir(downloads) == []


def names(store: Store, published: Published) -> set[bytes]:
    return {entry.name for entry in store.read_tree(published.tree)}


def fails(source: PublishedSource) -> str:
    with pytest.raises(ClivefsError) as caught:
        source.open()
    assert caught.value.place
    assert caught.value.remedy
    return str(caught.value)


# A server of this machine

Answers = dict[str, Callable[[BaseHTTPRequestHandler], None] | bytes]


@contextmanager
def serving(answers: Answers) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = answers.get(self.path)
            if callable(answer):
                answer(self)
                return
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def redirect(to: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


# Archives at a path


def test_an_archive_of_this_machine(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "thing-1.0.tar.gz"
    path.write_bytes(COMPRESSIONS["gz"](tar_of(TREE)))

    def source(**options: object) -> PublishedSource:
        return PublishedSource("archive", "../thing-1.0.tar.gz", store=store, host_path=str(path), **options)  # type: ignore[arg-type]

    published = source().open()
    assert names(store, published) == {b"a", b"bin", b"l"}
    assert published.layer == b"archive:../thing-1.0.tar.gz"
    assert published.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert published.time_ns == 1_600_000_000_000_000_000
    assert store.refs(REF_PREFIX) == {f"{REF_PREFIX}{published.sha256}-auto": published.tree}
    assert source().is_known()
    assert source().open() == published
    assert names(store, source(strip=0).open()) == {b"thing-1.0"}
    assert "strip = 9 nothing of the archive is left" in fails(source(strip=9))
    below = source(subdir="bin").open()
    assert names(store, below) == {b"run"}
    assert below.archive_tree == published.tree
    assert "Did you mean bin?" in fails(source(subdir="bim"))
    assert "not a directory" in fails(source(subdir="a"))

    path.write_bytes(zip_of({b"x/other": File(b"1")}))
    assert not source().is_known()
    assert names(store, source().open()) == {b"other"}
    assert published.sha256 in fails(source(sha256=published.sha256))
    assert "clivefs lock" in fails(source(locked=published.sha256))

    path.unlink()
    assert "No such file" in fails(source())
    assert source(locked=published.sha256).open() == published  # the store has what is meant
    assert "No such file" in fails(source(locked="0" * 64))


def test_it_is_shown_as_a_layer(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({**TREE, b"thing-1.0/big": File(b"b" * (2 << 20))}))
    source = PublishedSource("archive", "a.tar", store=store, host_path=str(path))
    published = source.open()
    lower = GitLower(source.space(published), published.tree, owner=Owner(0, 0), cache_dir=str(tmp_path))
    run = lower.find(b"bin/run")
    assert run is not None
    attributes = lower.attr(run, fetch=False)
    assert (attributes.mode & 0o777, attributes.size, attributes.mtime_ns) == (0o755, 2, published.time_ns)
    assert lower.describe(run)["layer"] == b"archive:a.tar"
    link, big = lower.find(b"l"), lower.find(b"big")
    assert link is not None
    assert big is not None
    assert lower.readlink(link) == b"bin/run"
    file = lower.open(big)
    assert file.read(1 << 20, 10) == b"b" * 10
    file.close()
    lower.close()


def test_a_hostile_archive_leaves_no_trace(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(tar_of({**TREE, b"../escape": File(b"bad")}))
    source = PublishedSource("archive", "bad.tar", store=store, host_path=str(path))
    assert "`../escape`" in fails(source)
    assert list(store.meta_items("published")) == []
    assert store.refs() == {}


# Archives at a URL


def test_an_archive_at_a_url_is_fetched_once(store: Store) -> None:
    data = COMPRESSIONS["xz"](tar_of(TREE))
    with serving({"/t.tar.xz": data, "/moved": redirect("/t.tar.xz")}) as (base, asked):
        published = PublishedSource("archive", f"{base}/t.tar.xz", store=store).open()
        assert names(store, published) == {b"a", b"bin", b"l"}
        assert PublishedSource("archive", f"{base}/t.tar.xz", store=store).open() == published
        assert asked == ["/t.tar.xz"]
        assert PublishedSource("archive", f"{base}/moved", store=store).open().tree == published.tree
    assert PublishedSource("archive", f"{base}/t.tar.xz", store=store).open() == published
    # A digest says what is meant, wherever it would come from.
    elsewhere = PublishedSource("archive", f"{base}/mirror.tar.xz", store=store, sha256=published.sha256)
    assert elsewhere.open().tree == published.tree
    assert "does not answer" in fails(PublishedSource("archive", f"{base}/new", store=store))


def test_a_url_that_gives_something_else_now(store: Store) -> None:
    answers: Answers = {"/t": tar_of(TREE)}
    with serving(answers) as (base, _):
        old = PublishedSource("archive", f"{base}/t", store=store).open()
        answers["/t"] = data = tar_of({b"x": File(b"other")})
        new = hashlib.sha256(data).hexdigest()
        assert PublishedSource("archive", f"{base}/t", store=store, locked=old.sha256).open() == old
        assert PublishedSource("archive", f"{base}/t", store=store, locked=new).open().sha256 == new
        text = fails(PublishedSource("archive", f"{base}/t", store=store, sha256="0" * 64))
        assert new in text
        assert "0" * 64 in text
        both = PublishedSource("archive", f"{base}/t", store=store, sha256=new, locked=old.sha256)
        assert "clivefs lock" in fails(both)


def test_servers_that_do_not_serve(store: Store) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):  # until the other side has had enough
            while True:
                handler.wfile.write(bytes(1 << 16))

    def denied(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(401)
        handler.end_headers()

    released = threading.Event()

    def silent(_: BaseHTTPRequestHandler) -> None:
        released.wait(30)

    answers: Answers = {
        "/cut": cut,
        "/endless": endless,
        "/denied": denied,
        "/silent": silent,
        "/loop": redirect("/loop"),
        "/file": redirect("file:///etc/passwd"),
        "/page": b"<html>" * 1000,
    }
    limits = ArchiveLimits(size=1 << 20)
    with serving(answers) as (base, _):
        for path, why in [
            ("/missing", "status 404"),
            ("/denied", "credentials"),
            ("/cut", "answer|ended"),
            ("/endless", "archive_size"),
            ("/loop", "redirects more than"),
            ("/file", "not safe to follow"),
            ("/page", "neither a tar"),
        ]:
            source = PublishedSource("archive", base + path, store=store, limits=limits, answer_timeout_s=20)
            with pytest.raises(ClivefsError, match=why):
                source.open()
        try:
            assert "does not answer" in fails(
                PublishedSource("archive", f"{base}/silent", store=store, answer_timeout_s=0.2)
            )
        finally:
            released.set()


@pytest.mark.parametrize("begun", [False, True], ids=["no answer", "half an answer"])
def test_a_download_from_a_silent_server_is_ended(store: Store, begun: bool) -> None:
    asked, released = threading.Event(), threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        if begun:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b"x" * 10)
        asked.set()
        released.wait(30)

    failed: list[ClivefsError] = []

    def get(base: str) -> None:
        with pytest.raises(ClivefsError) as caught:
            PublishedSource("archive", f"{base}/silent", store=store, answer_timeout_s=600).open()
        failed.append(caught.value)

    with serving({"/silent": silent}) as (base, _):
        thread = threading.Thread(target=get, args=[base])
        thread.start()
        try:
            assert asked.wait(20)
            deadline = time.monotonic() + 20
            while thread.is_alive() and time.monotonic() < deadline:
                fetch.end_all()  # the connection is noted a moment after it is made
                thread.join(0.05)
            assert not thread.is_alive()
        finally:
            released.set()
            thread.join()
    assert failed


def test_credentials_of_a_url_go_to_its_host_and_are_not_shown(store: Store) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.send_response(403)
        handler.end_headers()

    with serving({"/t": answer}) as (other, _), serving({"/t": answer, "/away": redirect(f"{other}/t")}) as (base, _):
        for path in ("/t", "/away"):
            source = PublishedSource("archive", f"{base}{path}".replace("//", "//me:se%40cret@"), store=store)
            text = fails(source)
            assert "status 403" in text
            assert "cret" not in text
    assert seen == ["Basic " + base64.b64encode(b"me:se@cret").decode(), None]


# PyPI, by the real pip and an index of this machine


def wheel(directory: Path, name: str, version: str, **files: bytes) -> Path:
    info = f"{name}-{version}.dist-info"
    path = directory / f"{name}-{version}-py3-none-any.whl"
    content = {
        **{f"{name}/{file}.py": data for file, data in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in content.items():
            archive.writestr(file, data)
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    directory = tmp_path / "index"
    directory.mkdir()
    for version in ("1.0", "1.1", "2.0", "2.1rc1", "10.0"):
        wheel(directory, "thing", version, code=f"V = {version!r}\n".encode(), same=b"SAME = 1\n")
    return directory


def pip_from(index: Path) -> PackageClients:
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    environment.pop("PIP_EXTRA_INDEX_URL", None)
    return PackageClients(environment=environment)


def test_a_release_of_pypi(store: Store, index: Path) -> None:
    clients = pip_from(index)
    said: list[str] = []
    source = PublishedSource("pypi", "thing==1.1", store=store, clients=clients, progress=said.append)
    assert not source.is_known()
    published = source.open()
    assert names(store, published) == {b"thing", b"thing-1.1.dist-info"}
    assert (published.version, published.layer) == ("1.1", b"pypi:thing==1.1")
    assert published.sha256 == hashlib.sha256((index / "thing-1.1-py3-none-any.whl").read_bytes()).hexdigest()
    assert said == ["pypi:thing==1.1: fetching", "pypi:thing==1.1: unpacking"]

    # From now on without a client, with the lock or without.
    for locked in (None, published.sha256):
        assert PublishedSource("pypi", "thing==1.1", store=store, clients=NO_CLIENT, locked=locked).open() == published

    # What two releases share is one object.
    other = PublishedSource("pypi", "thing==2.0", store=store, clients=clients).open()

    def module(release: Published) -> dict[bytes, bytes]:
        below = next(entry.oid for entry in store.read_tree(release.tree) if entry.name == b"thing")
        return {entry.name: entry.oid for entry in store.read_tree(below)}

    assert module(published)[b"same.py"] == module(other)[b"same.py"]
    assert module(published)[b"code.py"] != module(other)[b"code.py"]


def test_a_release_of_pypi_that_is_not(store: Store, index: Path) -> None:
    clients = pip_from(index)
    text = fails(PublishedSource("pypi", "thing==1.5", store=store, clients=clients))
    assert "has no version 1.5" in text
    assert "1.1" in text
    assert "2.0" in text
    assert "no package other" in fails(PublishedSource("pypi", "other==1.0", store=store, clients=clients))
    assert "no sdist of it" in fails(PublishedSource("pypi", "thing==1.0", store=store, clients=clients, sdist=True))


def test_pip_takes_the_file_that_is_locked_and_no_other(store: Store, index: Path) -> None:
    clients = pip_from(index)
    digest = hashlib.sha256((index / "thing-2.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert PublishedSource("pypi", "thing==2.0", store=store, clients=clients, locked=digest).open().sha256 == digest
    text = fails(PublishedSource("pypi", "thing==2.0", store=store, clients=clients, locked="0" * 64))
    assert digest in text
    assert "0" * 64 in text
    # A lock that names the file of another release does not make it this one.
    assert digest in fails(PublishedSource("pypi", "thing==1.0", store=store, clients=clients, locked=digest))


def test_an_sdist_that_does_not_build_is_still_shown(store: Store, tmp_path: Path) -> None:
    files = {
        b"broken-1.0/setup.py": File(b"raise SystemExit('no compiler')"),
        b"broken-1.0/pyproject.toml": File(b"[build-system]\nrequires = []\nbuild-backend = 'broken_backend'\n"),
        b"broken-1.0/PKG-INFO": File(b"Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"),
    }
    sdist = COMPRESSIONS["gz"](tar_of(files))
    digest = hashlib.sha256(sdist).hexdigest()
    link = f'<a href="/files/broken-1.0.tar.gz#sha256={digest}">broken-1.0.tar.gz</a>'

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.wfile.write(f"<!DOCTYPE html><html><body>{link}</body></html>".encode())

    with serving({"/simple/broken/": page, "/files/broken-1.0.tar.gz": sdist}) as (base, _):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_INDEX_URL": f"{base}/simple/"}
        clients = PackageClients(environment=environment)
        said: list[str] = []
        wheel_only = fails(PublishedSource("pypi", "broken==1.0", store=store, clients=clients))
        assert "no wheel of it" in wheel_only
        assert "pypi:broken==1.0#sdist" in wheel_only
        source = PublishedSource("pypi", "broken==1.0", store=store, clients=clients, sdist=True, progress=said.append)
        assert names(store, source.open()) == {b"setup.py", b"pyproject.toml", b"PKG-INFO"}
        assert any("does not build here" in each for each in said)
        assert source.open().sha256 == digest


def test_one_of_two_indexes_does_not_answer(store: Store, index: Path) -> None:
    """The other one, a folder of wheels, knows some releases: it is not known what there is."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(index)}
        environment["PIP_INDEX_URL"] = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        environment.pop("PIP_EXTRA_INDEX_URL", None)
        clients = PackageClients(environment=environment, answer_timeout_s=2)
        for release, sdist in (("thing==1.5", False), ("thing==1.0", True)):
            text = fails(PublishedSource("pypi", release, store=store, clients=clients, sdist=sdist))
            assert "does not answer" in text
        assert PublishedSource("pypi", "thing==1.0", store=store, clients=clients).open().version == "1.0"


def test_without_a_client_or_a_network(store: Store, tmp_path: Path) -> None:
    assert "cannot be started" in fails(PublishedSource("pypi", "thing==1.0", store=store, clients=NO_CLIENT))
    assert "Install Node.js" in fails(PublishedSource("npm", "thing@1.0.0", store=store, clients=NO_CLIENT))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PIP_INDEX_URL": url,
            "npm_config_registry": url,
        }
        clients = PackageClients(environment=environment, answer_timeout_s=2)
        assert "does not answer" in fails(PublishedSource("pypi", "thing==1.0", store=store, clients=clients))
        if shutil.which("npm"):
            assert "does not answer" in fails(PublishedSource("npm", "thing@1.0.0", store=store, clients=clients))


def test_a_client_that_never_ends_is_ended(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "npm"
    script.write_text("#!/bin/sh\nsleep 600 & wait\n")
    script.chmod(0o755)
    clients = PackageClients(npm=str(script), run_timeout_s=0.3)
    assert "did not finish in 0.3 s" in fails(PublishedSource("npm", "thing@1.0.0", store=store, clients=clients))


def test_what_a_killed_process_left_is_swept(store: Store, index: Path) -> None:
    left = Path(store.directory("downloads")) / "new-left"
    left.mkdir()
    (left / "file").write_bytes(b"x")
    PublishedSource("pypi", "thing==1.0", store=store, clients=pip_from(index)).open()
    assert not left.exists()


# npm, by the real npm and a registry of this machine


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[PackageClients]:
    answers: Answers = {}
    with serving(answers) as (base, _):
        for name in ("thing", "@scope/thing"):
            versions = {}
            for version in ("1.0.0", "1.1.0", "2.0.0"):
                manifest = json.dumps({"name": name, "version": version}).encode()
                tree = {b"package/package.json": File(manifest), b"package/cli.js": File(b"//", True)}
                if version == "2.0.0":
                    tree = {b"thing/package.json": File(manifest), b"thing/lib/x.js": File(version.encode())}
                data = COMPRESSIONS["gz"](tar_of(tree))
                path = f"/{name}/-/thing-{version}.tgz"
                answers[path] = data
                integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
                dist = {"tarball": base + path, "integrity": integrity, "shasum": hashlib.sha1(data).hexdigest()}
                versions[version] = {"name": name, "version": version, "dist": dist}
            document = {"name": name, "dist-tags": {"latest": "2.0.0"}, "versions": versions}
            answers["/" + name.replace("/", "%2f")] = json.dumps(document).encode()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "npm_config_registry": base + "/",
            "npm_config_cache": str(tmp_path / "npm-cache"),
        }
        yield PackageClients(environment=environment)


@needs_npm
@pytest.mark.parametrize("name", ["thing", "@scope/thing"])
def test_a_release_of_npm(store: Store, registry: PackageClients, name: str) -> None:
    published = PublishedSource("npm", f"{name}@1.1.0", store=store, clients=registry).open()
    assert names(store, published) == {b"cli.js", b"package.json"}
    assert (published.version, published.layer) == ("1.1.0", f"npm:{name}@1.1.0".encode())
    assert published.integrity is not None
    assert published.integrity.startswith("sha512-")
    again = PublishedSource("npm", f"{name}@1.1.0", store=store, clients=NO_CLIENT, locked=published.sha256)
    assert again.open() == published
    # The first component goes, whatever it is called.
    assert names(store, PublishedSource("npm", f"{name}@2.0.0", store=store, clients=registry).open()) == {
        b"lib",
        b"package.json",
    }


@needs_npm
def test_a_release_of_npm_that_is_not(store: Store, registry: PackageClients) -> None:
    text = fails(PublishedSource("npm", "thing@1.2.0", store=store, clients=registry))
    assert "has no version 1.2.0" in text
    assert "1.1.0, 2.0.0" in text
    assert "no package other" in fails(PublishedSource("npm", "other@1.0.0", store=store, clients=registry))
    assert "npm:thing@1.1.0" in fails(PublishedSource("npm", "thing@1", store=store, clients=registry))
    locked = PublishedSource("npm", "thing@1.0.0", store=store, clients=registry, locked="0" * 64)
    assert "clivefs lock" in fails(locked)


# The real thing


@pytest.mark.network
@needs_npm
@pytest.mark.parametrize(
    "kind, location, expected",
    [
        ("pypi", "six==1.16.0", {b"six.py", b"six-1.16.0.dist-info"}),
        ("npm", "left-pad@1.3.0", {b"index.js", b"package.json", b"README.md", b"perf"}),
        ("npm", "@types/left-pad@1.2.0", {b"LICENSE", b"README.md", b"package.json"}),
    ],
)
def test_real_releases(store: Store, kind: str, location: str, expected: set[bytes]) -> None:
    published = PublishedSource(kind, location, store=store).open()  # type: ignore[arg-type]
    assert expected <= names(store, published)
    again = PublishedSource(kind, location, store=store, clients=NO_CLIENT, locked=published.sha256)  # type: ignore[arg-type]
    assert again.open() == published


@pytest.mark.network
def test_a_real_sdist(store: Store) -> None:
    wheel = PublishedSource("pypi", "six==1.16.0", store=store).open()
    source = PublishedSource("pypi", "six==1.16.0", store=store, sdist=True)
    assert not source.is_known()
    sdist = source.open()
    assert {b"setup.py", b"PKG-INFO", b"six.py"} <= names(store, sdist)
    # One file of both is one object; and the lock decides which of them is meant.
    modules = [
        next(each for each in store.read_tree(tree) if each.name == b"six.py") for tree in (wheel.tree, sdist.tree)
    ]
    assert modules[0].oid == modules[1].oid
    with Store.open(Path(store.path).parent / "other") as other:
        locked = PublishedSource("pypi", "six==1.16.0", store=other, sdist=True, locked=sdist.sha256)
        assert locked.open().tree == sdist.tree


@pytest.mark.network
def test_a_real_release_that_is_not(store: Store) -> None:
    assert "1.16.0" in fails(PublishedSource("pypi", "six==1.16.1", store=store))


# Parts


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ("1.5", ["1.0", "1.4", "1.10", "2.0rc1", "2.0", "10.0"]),
        ("0.1", ["0.9", "1.0", "1.4", "1.10", "2.0rc1", "10.0"]),
        ("99", ["1.10", "2.0rc1", "2.0", "3.0", "10.0"]),
    ],
)
def test_near_versions(wanted: str, expected: list[str]) -> None:
    assert near_versions(wanted, ["10.0", "2.0", "2.0rc1", "1.10", "1.0", "1.4", "0.9", "3.0"]) == expected


def test_records_of_a_newer_clivefs_are_not_used(store: Store, index: Path) -> None:
    clients = pip_from(index)
    PublishedSource("pypi", "thing==1.0", store=store, clients=clients).open()
    with store.batch() as batch:
        for key, _ in list(store.meta_items("published")):
            batch.meta_put("published", key, b"\x91\x09")
    source = PublishedSource("pypi", "thing==1.0", store=store, clients=NO_CLIENT)
    assert not source.is_known()
    assert PublishedSource("pypi", "thing==1.0", store=store, clients=clients).open().version == "1.0"


def test_limits_are_those_of_the_workspace(store: Store, index: Path) -> None:
    limits = ArchiveLimits(files=2)
    source = PublishedSource("pypi", "thing==1.0", store=store, clients=pip_from(index), limits=limits)
    with pytest.raises(ArchiveError, match="archive_files"):
        source.open()
