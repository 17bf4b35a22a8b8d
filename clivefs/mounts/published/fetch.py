"""Downloading an archive from a URL: bounded in size, in redirects and in how long it may be silent.

The machine's certificates and proxy settings apply. Credentials in the URL go to its host and no other.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from clivefs import __version__
from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.published.member import ArchiveError

REDIRECTS_MAX = 5
_CHUNK_BYTES = 1 << 16
_BYTES_PER_WINDOW_MIN = 1024
"""Less than this in twice the timeout is taken for no answer."""
_REPORT_BYTES = 4 << 20


def download(
    url: str,
    into: BinaryIO,
    *,
    bytes_max: int,
    timeout_s: float,
    progress: Callable[[str], None],
    clock: Clock | None = None,
) -> None:
    """Write what *url* (http, https) gives to *into*. ClivefsError that says why not; OSError of *into*."""
    place = without_credentials(url)
    at = url
    for _ in range(REDIRECTS_MAX + 1):
        following = _get(at, into, place, bytes_max, timeout_s, progress, clock or SystemClock())
        if following is None:
            return
        target = urljoin(at, following)
        scheme = urlsplit(target).scheme.lower()
        if scheme not in ("http", "https") or (scheme == "http" and urlsplit(at).scheme.lower() == "https"):
            raise ClivefsError(
                f"it redirects to {without_credentials(target)}, which is not safe to follow",
                place=place,
                remedy="Name the archive's own URL.",
            )
        at = target
    raise ClivefsError(f"it redirects more than {REDIRECTS_MAX} times", place=place, remedy="Check the URL.")


# Ending downloads that nobody waits for any more


_asked: dict[int, list[socket.socket]] = {}
"""By thread: the connections of its request, whose server may be silent. Duplicates: urllib3 closes its own early."""
_changing = threading.Lock()


def end_all() -> None:
    """End every download whose server has been connected to, as this process is about to end. Those who wait for one
    get a ClivefsError."""
    with _changing:
        for each in [each for connections in _asked.values() for each in connections]:
            with contextlib.suppress(OSError):  # the other side was faster
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _can_be_ended() -> Iterator[None]:
    """What this thread connects to meanwhile is ended by `end_all`."""
    mine = threading.get_ident()
    with _changing:
        _asked[mine] = []
    try:
        yield
    finally:
        with _changing:
            for each in _asked.pop(mine):
                each.close()


def _note(connection: socket.socket) -> None:
    with _changing:
        found = _asked.get(threading.get_ident())
        if found is not None:
            found.append(socket.socket(fileno=os.dup(connection.fileno())))


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _note(self.sock)


class _SecureConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _note(self.sock)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


def without_credentials(url: str) -> str:
    """*url* as it may be shown."""
    try:
        parts = urlsplit(url)
        if parts.username is None and parts.password is None:
            return url
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    except ValueError:
        return "a malformed URL"


def _get(
    url: str,
    into: BinaryIO,
    place: str,
    bytes_max: int,
    timeout_s: float,
    progress: Callable[[str], None],
    clock: Clock,
) -> str | None:
    """One request; where it redirects to, or None when the content has been written."""
    try:
        with _can_be_ended(), _pool(url, timeout_s) as pool:
            response = pool.request(
                "GET",
                without_credentials(url),
                headers=_headers(url),
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
            )
            try:
                if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
                    return str(response.headers["Location"])
                if response.status != 200:
                    raise _status_error(response.status, place)
                _receive(response, into, place, bytes_max, timeout_s, progress, clock)
            finally:
                response.close()
    except HTTPError as error:
        raise ClivefsError(
            f"the server does not answer: {_reason(error)}",
            place=place,
            remedy="Check the network; what was mounted before can be mounted without one.",
        ) from error
    except (ValueError, ssl.SSLError) as error:
        raise ClivefsError(f"it cannot be asked for: {error}", place=place, remedy="Check the URL.") from error
    return None


def _receive(
    response: urllib3.BaseHTTPResponse,
    into: BinaryIO,
    place: str,
    bytes_max: int,
    timeout_s: float,
    progress: Callable[[str], None],
    clock: Clock,
) -> None:
    announced = response.headers.get("Content-Length", "")
    total = int(announced) if announced.isdecimal() and len(announced) < 20 else None
    if total is not None and total > bytes_max:
        raise _too_large(bytes_max, place)
    received = reported = window_bytes = 0
    window_ns = clock.monotonic_ns()
    while chunk := response.read1(_CHUNK_BYTES):
        received += len(chunk)
        if received > bytes_max:
            raise _too_large(bytes_max, place)
        into.write(chunk)
        now_ns = clock.monotonic_ns()
        if now_ns - window_ns > 2 * timeout_s * 1e9:
            if received - window_bytes < _BYTES_PER_WINDOW_MIN:
                raise ClivefsError(
                    f"the server sent {received - window_bytes} bytes in {2 * timeout_s:g} s",
                    place=place,
                    remedy="Try again later, or name a mirror.",
                )
            window_ns, window_bytes = now_ns, received
        if received - reported >= _REPORT_BYTES:
            reported = received
            progress(f"{place}: {received >> 20} MiB" + (f" of {total >> 20}" if total is not None else ""))
    if total is not None and received != total:
        raise ClivefsError(f"the connection ended after {received} of {total} bytes", place=place, remedy="Try again.")


def _pool(url: str, timeout_s: float) -> urllib3.PoolManager:
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme.lower()) or proxies.get("all")
    timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
    context = ssl.create_default_context()
    if proxy and not urllib.request.proxy_bypass(host):
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        pool: urllib3.PoolManager = urllib3.ProxyManager(
            without_credentials(proxy), proxy_headers=_proxy_headers(proxy), timeout=timeout, ssl_context=context
        )
    else:
        pool = urllib3.PoolManager(timeout=timeout, ssl_context=context)
    pool.pool_classes_by_scheme = dict(_POOLS)
    return pool


def _headers(url: str) -> dict[str, str]:
    headers = {"User-Agent": f"clivefs/{__version__}", "Accept-Encoding": "identity"}
    auth = _auth(url)
    if auth is not None:
        headers.update(urllib3.make_headers(basic_auth=auth))
    return headers


def _proxy_headers(url: str) -> dict[str, str]:
    auth = _auth(url)
    return {} if auth is None else dict(urllib3.make_headers(proxy_basic_auth=auth))


def _auth(url: str) -> str | None:
    parts = urlsplit(url)
    if parts.username is None:
        return None
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}"


def _status_error(status: int, place: str) -> ClivefsError:
    remedies = {
        401: "It needs credentials: write https://USER:PASSWORD@HOST/..., or fetch it and name the path.",
        403: "It needs credentials: write https://USER:PASSWORD@HOST/..., or fetch it and name the path.",
        404: "Check the URL.",
        410: "Check the URL.",
    }
    return ClivefsError(
        f"the server answers with status {status}", place=place, remedy=remedies.get(status, "Try again later.")
    )


def _too_large(bytes_max: int, place: str) -> ArchiveError:
    return ArchiveError(
        f"the archive is larger than {bytes_max} bytes",
        place=place,
        remedy="If you trust it, raise `archive_size` under [limits] in Clive.toml.",
    )


def _reason(error: HTTPError) -> str:
    text = str(error).split(">: ")[-1].split("): ", 1)[-1]
    return text[:200] or type(error).__name__
