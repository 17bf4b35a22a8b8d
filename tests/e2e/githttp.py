"""A git server over HTTP on the loopback: stock `git http-backend` behind the standard library's server."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CREDENTIALS = ("someone", "their password")


class GitHttp:
    """Serves the repositories below *root* until `stop`; `start` again takes the same port."""

    def __init__(self, root: Path, *, password: bool = False, certificate: tuple[Path, Path] | None = None) -> None:
        """*password*: ask for `CREDENTIALS`. *certificate*: (certificate, key), to be served over TLS."""
        self.root = root
        self.password = password
        self.requests: list[str] = []
        """`METHOD PATH` of each, in order."""
        self.refused = 0
        """How many had no or wrong credentials."""
        self.silent = threading.Event()
        """While it is set, requests are accepted and not answered."""
        self._certificate = certificate
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def url(self, name: str) -> str:
        scheme = "https" if self._certificate is not None else "http"
        return f"{scheme}://localhost:{self.port}/{name}"

    def start(self) -> None:
        outer = self

        class Handler(_Handler):
            git = outer

        self._released.clear()
        self._server = _Server(("127.0.0.1", self.port), Handler)
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._released.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def speak(self) -> None:
        """Answer again; who waits is let go."""
        self.silent.clear()
        self._released.set()
        self._released = threading.Event()

    def hold(self) -> None:
        """Wait while the server is silent."""
        released = self._released
        while self.silent.is_set() and not released.wait(0.05):
            pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is ended in the middle is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    git: GitHttp
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # http.server asks for these names
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        self.git.hold()
        self.git.requests.append(f"{self.command} {self.path}")
        wanted = base64.b64encode(":".join(CREDENTIALS).encode()).decode()
        if self.git.password and self.headers.get("Authorization") != f"Basic {wanted}":
            self.git.refused += 1
            self._send(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")
            return
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.git.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "http.receivepack",
            "GIT_CONFIG_VALUE_1": "true",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n") if b": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self._send(status, headers, content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def git_http(root: Path, **options: Any) -> Iterator[GitHttp]:
    """A `GitHttp` that is stopped in the end."""
    server = GitHttp(root, **options)
    try:
        yield server
    finally:
        server.speak()
        server.stop()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) for localhost, made by openssl."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return certificate, key
