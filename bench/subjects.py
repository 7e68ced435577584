"""What is measured: each is a program in front of the upstream, or the upstream itself."""

from __future__ import annotations

import atexit
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import evolve, field, frozen
from ruamel.yaml import YAML

from bench.processes import Program, cores, program, start, wait_for

SERVER: Final = "box"


@frozen(kw_only=True)
class Subject:
    """Something that stands before an upstream.

    Attributes:
        name: what it is called in the report.
        command: makes the command from the upstream's port and the port to listen on; the latter
            is 0 if it chooses one itself and says `ready PORT`.
        path: what is posted to.
        announces: whether it says `ready PORT`.
        env: variables for it.
        leave_out: part of the command lines of children that do not count.
    """

    name: str
    command: Callable[[int, int], list[str]]
    path: str = "/mcp"
    announces: bool = False
    env: dict[str, str] = field(factory=dict)
    leave_out: str = ""


def kars(*arguments: str, python: str = sys.executable) -> Callable[[int, int], list[str]]:
    """The command of the router that is installed for an interpreter, with further arguments."""
    script = str(Path(python).with_name("kars"))

    def command(upstream: int, port: int) -> list[str]:
        ours = [python, script, "run", "--upstream"]
        ours += [f"{SERVER}=http://127.0.0.1:{upstream}/mcp"]
        return [*ours, "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0", *arguments]

    return command


DIRECT: Final = "direct"
FLOOR: Final = Subject(
    name="floor", command=lambda upstream, _: program("floor", str(upstream)), announces=True
)
LIMIT: Final = Subject(
    name="limit", command=lambda upstream, _: program("limit", str(upstream)), announces=True
)
LEAST: Final = Subject(
    name="least", command=lambda upstream, _: program("least", str(upstream)), announces=True
)
KARS: Final = Subject(name="kars", command=kars(), path=f"/mcp/{SERVER}")
LEAN: Final = Subject(name="kars-lean", command=kars("--listener", "lean"), path=f"/mcp/{SERVER}")
OURS: Final = (FLOOR, LIMIT, KARS, LEAN)


def routers(subjects: Sequence[Subject]) -> list[Subject]:
    """Those that are the router itself, whichever way it is started."""
    return [subject for subject in subjects if subject.name.startswith(KARS.name)]


def under_hypercorn(upstream: int, port: int) -> list[str]:
    """The command of the router's application under hypercorn as it comes."""
    url = f"http://127.0.0.1:{upstream}/mcp"
    place = _file({"servers": {SERVER: {"url": url, "allowedTools": ["*"]}}})
    serving = [sys.executable, "-m", "hypercorn", "-k", "trio", "-w", "0"]
    return [
        *("env", f"KARS_CONFIG={place}"),
        *(*serving, "-b", f"127.0.0.1:{port}", "kars_router.asgi:app"),
    ]


HYPERCORN: Final = Subject(name="hypercorn", command=under_hypercorn, path=f"/mcp/{SERVER}")


def configured(subject: Subject, *, plain: bool = False, **keys: Any) -> Subject:
    """A router with a configuration file that has more keys than its command line can say.

    Args:
        subject: one of the `routers`.
        plain: write the file in JSON, as the operator does, which leaves nothing of a parser; else
            in YAML, as people do.
        keys: of kars.yaml, `servers` only if they are not the one upstream.
    """

    def command(upstream: int, port: int) -> list[str]:
        url = f"http://127.0.0.1:{upstream}/mcp"
        servers = {SERVER: {"url": url, "allowedTools": ["*"]}}
        place = _file({"servers": servers, **keys}, plain=plain)
        arguments = subject.command(upstream, port)
        at = arguments.index("--upstream")
        return [*arguments[:at], "-c", str(place), *arguments[at + 2 :]]

    return evolve(subject, command=command)


def _file(document: dict[str, Any], *, plain: bool = True) -> Path:
    directory = tempfile.mkdtemp(prefix="kars-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    place = Path(directory, "kars.yaml")
    if plain:
        place.write_text(json.dumps(document))
    else:
        YAML(typ="safe", pure=True).dump(document, place)
    return place


@contextmanager
def upstream(*arguments: str) -> Iterator[Program]:
    """The upstream, while the block lasts."""
    with start(program("upstream", *arguments), on=cores()[1]) as running:
        yield running


@contextmanager
def running(subject: Subject, upstream_port: int) -> Iterator[Program]:
    """A subject in front of an upstream, accepting connections, while the block lasts.

    Raises:
        BenchError: it did not start.
    """
    port = 0 if subject.announces else free_port()
    with (
        # Nothing that an earlier run has left, such as a router's record of its sessions.
        tempfile.TemporaryDirectory(prefix="kars-bench-") as home,
        start(
            subject.command(upstream_port, port),
            on=cores()[0],
            port=port,
            env={"HOME": home, **subject.env},
            leave_out=subject.leave_out,
        ) as started,
    ):
        wait_for(started)
        yield started


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
