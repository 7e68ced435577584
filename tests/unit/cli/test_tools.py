"""`kars tools` against a real server, which runs in a thread of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import trio
from attrs import define
from ruamel.yaml import YAML

from kars_router.cli.main import main
from kars_router.config.tools_lock import read_lock
from kars_router.testing import HeartbeatServer
from kars_router.testing.serving import serve

Said = tuple[int, str, str]


@define
class Place:
    """A directory with a configuration of the server `box`, and that server."""

    path: Path
    url: str
    server: HeartbeatServer
    capsys: pytest.CaptureFixture[str]

    @property
    def lock(self) -> Path:
        return self.path / "tools.lock.json"

    def configure(self, *, lock: bool = True, **servers: str) -> None:
        lines = ["toolsLock: tools.lock.json"] if lock else []
        lines.append("servers:")
        for name, url in {"box": self.url, **servers}.items():
            lines.append(f"  {name}: {{url: '{url}/mcp', allowedTools: ['re*', 'in*']}}")
        (self.path / "kars.yaml").write_text("\n".join(lines))

    def kars(self, *args: str) -> Said:
        status = main(["tools", *args])
        out, err = self.capsys.readouterr()
        return status, out, err

    def describe(self, tool: str, text: str) -> None:
        """The server describes a tool otherwise from now on."""
        _, schema, handler = self.server.tools[tool]
        self.server.tools = {**self.server.tools, tool: (text, schema, handler)}


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KARS_CONFIG", raising=False)
    with running() as (url, server):
        made = Place(tmp_path, url, server, capsys)
        made.configure()
        yield made


@contextlib.contextmanager
def running() -> Iterator[tuple[str, HeartbeatServer]]:
    """A scripted server on a port of its own, as long as the block lasts."""
    ready: SimpleQueue[tuple[str, HeartbeatServer, trio.lowlevel.TrioToken, trio.Event]] = (
        SimpleQueue()
    )

    async def run() -> None:
        async with HeartbeatServer.open() as server, serve(server.app) as url:
            stop = trio.Event()
            ready.put((url, server, trio.lowlevel.current_trio_token(), stop))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    url, server, token, stop = ready.get(timeout=20)
    try:
        yield url, server
    finally:
        token.run_sync_soon(stop.set)
        thread.join(20)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_the_first_lock_is_written_without_a_question(place: Place) -> None:
    status, out, err = place.kars("lock")
    assert (status, err) == (0, "")
    assert out.endswith(f"{place.lock}: 2 tools locked\n")
    assert "box/read: added\n" in out
    lock = read_lock(place.lock)
    assert set(lock) == {"box"}
    assert set(lock["box"]) == {"increment", "read"}
    first = place.lock.read_bytes()
    assert place.kars("lock")[:2] == (0, f"{place.lock}: nothing changed\n")
    assert place.kars("diff") == (0, "every tool is as it was accepted\n", "")
    assert place.lock.read_bytes() == first


def test_a_change_is_shown_and_not_accepted_unasked(place: Place) -> None:
    place.kars("lock")
    before = place.lock.read_bytes()
    place.describe("read", "Reads.\x1b[2J\u202e")
    status, out, err = place.kars("diff")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[:3] == ["box/read: changed", "--- box/read (accepted)", "+++ box/read (now)"]
    assert '+  "description": "Reads.\\u001b[2J\\u202e",' not in out  # no comma: it is no JSON
    assert '+  "description": "Reads.\\u001b[2J\\u202e"' in lines
    status, out, err = place.kars("lock")
    assert (status, err) == (1, "kars: add --yes to accept these changes\n")
    assert "box/read: changed" in out
    assert place.lock.read_bytes() == before
    assert place.kars("lock", "--yes")[0] == 0
    assert place.kars("diff")[0] == 0
    assert place.lock.read_bytes() != before


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("", 130)])
def test_on_a_terminal_it_asks(
    answer: str, status: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.kars("lock")
    before = place.lock.read_bytes()
    place.describe("read", "Reads.")
    asked = []

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    def reply(prompt: str) -> str:
        asked.append(prompt)
        if not answer:
            raise EOFError
        return answer.strip()

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("click.termui.visible_prompt_func", reply)
    assert place.kars("lock")[0] == status
    assert asked
    assert (place.lock.read_bytes() != before) == (status == 0)


def test_differences_as_data(place: Place) -> None:
    place.kars("lock")
    place.describe("read", "Reads.")
    place.server.tools = {k: v for k, v in place.server.tools.items() if k != "increment"}
    status, out, err = place.kars("diff", "-o", "json")
    gone, changed = json.loads(out)
    assert (status, err) == (1, "")
    assert (gone["server"], gone["tool"], gone["change"], gone["now"]) == (
        "box",
        "increment",
        "removed",
        "",
    )
    assert changed["change"] == "changed"
    assert changed["was"].startswith("sha256:")
    assert changed["now"].startswith("sha256:")
    assert '+  "description": "Reads."' in changed["diff"]
    assert YAML(typ="safe", pure=True).load(place.kars("diff", "-o", "yaml")[1]) == [gone, changed]


def test_a_server_that_cannot_be_reached(place: Place) -> None:
    place.kars("lock")
    before = place.lock.read_bytes()
    place.configure(down=f"http://127.0.0.1:{free_port()}")
    place.describe("read", "Reads.")
    status, out, err = place.kars("diff")
    assert status == 3
    assert "box/read: changed" in out
    assert err.startswith("kars: down cannot be reached: ")
    status, _, err = place.kars("lock", "--yes")
    assert status == 3
    assert "nothing was written" in err
    assert place.lock.read_bytes() == before
    assert place.kars("lock", "--yes", "--server", "box")[0] == 0
    assert place.kars("diff", "--server", "box")[0] == 0


def test_one_server_leaves_the_others_as_they_were(place: Place) -> None:
    with running() as (url, other):
        place.configure(other=url)
        assert place.kars("lock")[0] == 0
        place.describe("read", "Reads.")
        other.tools = {k: v for k, v in other.tools.items() if k != "read"}
        assert place.kars("lock", "--server", "other", "--yes")[0] == 0
        status, out, _ = place.kars("diff")
        assert status == 1
        assert "box/read: changed" in out
        assert "other" not in out


def test_a_server_that_was_removed_leaves_the_lock(place: Place) -> None:
    with running() as (url, _):
        place.configure(other=url)
        place.kars("lock")
    place.configure()
    status, out, _ = place.kars("diff")
    assert (status, "other/read: removed" in out) == (1, True)
    status, out, _ = place.kars("lock")
    assert (status, "other/read: removed" in out) == (1, True)
    assert set(read_lock(place.lock)) == {"box", "other"}
    assert place.kars("lock", "--yes")[0] == 0
    assert set(read_lock(place.lock)) == {"box"}


def test_another_place_for_the_lock(place: Place) -> None:
    place.configure(lock=False)
    said = "kars: name the lock with --lock, or with toolsLock in the configuration\n"
    assert place.kars("lock") == (1, "", said)
    assert place.kars("lock", "--lock", "mine.json")[0] == 0
    assert set(read_lock(place.path / "mine.json")["box"]) == {"increment", "read"}
    assert place.kars("diff", "--lock", "mine.json")[0] == 0


def test_a_lock_that_cannot_be_used(place: Place) -> None:
    status, out, err = place.kars("diff")
    assert (status, out) == (1, "")
    assert err == f"kars: the lock {place.lock} is not there; write it with 'kars tools lock'\n"
    place.kars("lock")
    place.lock.write_bytes(place.lock.read_bytes().replace(b'"read"', b'"raed"'))
    for command in ("diff", "lock"):
        status, out, err = place.kars(command)
        assert (status, out) == (1, "")
        assert "was changed by hand" in err
        assert "accept all tools anew" in err


def test_wrong_usage(place: Place) -> None:
    status, _, err = place.kars("lock", "--server", "nobody")
    assert status == 2
    assert "'nobody' is no server of the configuration" in err
    (place.path / "kars.yaml").unlink()
    assert place.kars("diff")[0] == 1


def test_no_configuration_is_changed_by_looking(place: Place) -> None:
    place.kars("lock")
    assert sorted(path.name for path in place.path.iterdir()) == ["kars.yaml", "tools.lock.json"]
