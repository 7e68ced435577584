"""A package index on loopback, with the release notes of a repository, and servers that misbehave.

Real sockets and threads: what is tested blocks, and runs in this process or in another one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote

from attrs import define, field

JSON: Final = "application/vnd.pypi.simple.v1+json"
# So that no proxy of the machine is asked for what is on loopback.
NO_PROXY: Final = {"no_proxy": "*", "NO_PROXY": "*"}


@define
class File:
    """One file of a project; `content` is only needed where it is installed.

    `announced` is the content that its digest on the page is of, if not this one.
    """

    name: str
    content: bytes = b""
    announced: bytes | None = None
    yanked: bool | str | None = None
    requires_python: str | None = None

    @property
    def digest(self) -> str:
        announced = self.content if self.announced is None else self.announced
        return hashlib.sha256(announced).hexdigest()


@define
class Asked:
    """One request that a server got."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def login(self) -> str:
        """`user:password`, as they were shown."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return base64.b64decode(token).decode() if scheme == "Basic" else ""


@define
class Index:
    """The index: what it has can be changed while it runs."""

    url: str
    files: list[File] = field(factory=list)
    releases: list[dict[str, Any]] = field(factory=list)
    speaks_json: bool = True
    login: str = ""
    asked: list[Asked] = field(factory=list)
    redirects: dict[str, str] = field(factory=dict)

    @property
    def simple(self) -> str:
        return f"{self.url}/simple"

    @property
    def repository(self) -> str:
        return f"{self.url}/somebody/kars-router"

    def add(self, *names: str, **more: Any) -> None:
        """Lists files by their names, without content."""
        self.files += [File(name, **more) for name in names]

    def pages(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [each.path for each in self.asked]

    def environ(self, **more: str) -> dict[str, str]:
        """Variables by which pip and uv go to this index and nowhere else."""
        return {
            "PIP_INDEX_URL": self.simple,
            "PIP_CONFIG_FILE": "/dev/null",
            "UV_DEFAULT_INDEX": self.simple,
            "UV_NO_CONFIG": "1",
            **NO_PROXY,
            **more,
        }

    def answer(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        if asked.path in self.redirects:
            return 302, {"location": self.redirects[asked.path]}, b""
        if self.login and asked.login != self.login:
            return 401, {"www-authenticate": 'Basic realm="index"'}, b""
        if match := re.fullmatch(r"/simple/([^/]+)/", asked.path):
            return self._page(match[1])
        if match := re.fullmatch(r"/files/([^/]+)", asked.path):
            for file in self.files:
                if file.name == unquote(match[1]):
                    return 200, {"content-type": "application/octet-stream"}, file.content
        if match := re.fullmatch(
            r"/api/v3/repos/somebody/kars-router/releases(?:/tags/([^/]+)|\?per_page=50)",
            asked.path,
        ):
            return self._notes(match[1])
        return 404, {}, b""

    def _page(self, project: str) -> tuple[int, dict[str, str], bytes]:
        files = [
            file
            for file in self.files
            if re.sub(r"[-_.]+", "-", file.name.split("-")[0]).lower() == project
        ]
        if not files:
            return 404, {}, b""
        if not self.speaks_json:
            links = "".join(map(_link, files))
            text = f"<!DOCTYPE html><html><body>{links}</body></html>"
            return 200, {"content-type": "text/html; charset=utf-8"}, text.encode()
        page = {
            "meta": {"api-version": "1.1"},
            "name": project,
            "versions": [file.name.split("-")[1] for file in files],
            "files": [_entry(file) for file in files],
        }
        return 200, {"content-type": JSON}, json.dumps(page).encode()

    def _notes(self, tag: str | None) -> tuple[int, dict[str, str], bytes]:
        found: Any = self.releases
        if tag is not None:
            found = next((each for each in self.releases if each["tag_name"] == tag), None)
        if found is None:
            return 404, {}, b'{"message": "Not Found"}'
        return 200, {"content-type": "application/json"}, json.dumps(found).encode()


def _entry(file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "filename": file.name,
        "url": f"/files/{file.name}",
        "hashes": {"sha256": file.digest},
        "size": len(file.content),
        "upload-time": "2026-01-01T00:00:00Z",
    }
    if file.yanked is not None:
        entry["yanked"] = file.yanked
    if file.requires_python is not None:
        entry["requires-python"] = file.requires_python
    return entry


def _link(file: File) -> str:
    yanked = ' data-yanked=""' if file.yanked is not None else ""
    requires = (file.requires_python or "").replace(">", "&gt;").replace("<", "&lt;")
    python = f' data-requires-python="{requires}"' if requires else ""
    href = f"/files/{file.name}#sha256={file.digest}"
    return f'<a href="{href}"{yanked}{python}>{file.name}</a><br/>\n'


@contextlib.contextmanager
def serve_index(*names: str) -> Iterator[Index]:
    """An index on a port of its own, with these files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers)
            index.asked.append(asked)
            status, answered, body = index.answer(asked)
            self.send_response(status)
            for name, value in answered.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 (the name that the base class looks for)

        def log_message(self, *_: object) -> None:
            """The test asserts what was asked; nobody reads a log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    index = Index(f"http://127.0.0.1:{server.server_port}")
    index.add(*names)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@define
class Raw:
    """A connection to a server that does what a script says."""

    socket: socket.socket
    stop: threading.Event

    def request(self) -> bytes:
        """The head of the request."""
        head = b""
        while b"\r\n\r\n" not in head and (piece := self.socket.recv(65_536)):
            head += piece
        return head

    def send(self, *lines: str, body: bytes = b"") -> None:
        """Sends the head of an answer, and what comes of its body."""
        self.socket.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body)

    def drip(self, piece: bytes, seconds: float) -> None:
        """Sends a piece again and again, until the client has gone or the test is over."""
        with contextlib.suppress(OSError):
            while not self.stop.wait(seconds):
                self.socket.sendall(piece)

    def pour(self, piece: bytes) -> None:
        """Sends a piece again and again, as fast as it is taken."""
        with contextlib.suppress(OSError):
            while not self.stop.is_set():
                self.socket.sendall(piece)


@contextlib.contextmanager
def serve_raw(script: Callable[[Raw], object]) -> Iterator[str]:
    """The URL of a server that runs a script for each connection, and then closes it."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    workers: list[threading.Thread] = []

    def work(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            script(Raw(connection, stop))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                connection, _ = listener.accept()
                workers.append(threading.Thread(target=work, args=(connection,)))
                workers[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)  # wakes the one that accepts
        acceptor.join()
        listener.close()
        for each in workers:
            each.join()
