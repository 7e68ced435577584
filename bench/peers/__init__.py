"""Other programs that put an HTTP endpoint before an MCP server: which, and how each runs.

They are installed by `python -m bench.peers.install` into the directory that `KARS_BENCH_PEERS`
names, `.tox/bench-peers` by default. What is not there is not measured.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import field, frozen

from bench.processes import cores, program
from bench.subjects import Subject

_PROGRAMS: Final = Path(__file__).resolve().parent / "programs"
STDIO_SERVER: Final = "stdio_server.py"
_Command = Callable[[Path, int, int], list[str]]


@frozen(kw_only=True)
class Source:
    """What is installed, and with what.

    Attributes:
        name: of its place in the directory.
        requirement: what pip, npm or cargo is asked for.
        installer: `pip`, `npm` or `cargo`.
    """

    name: str
    requirement: str
    installer: str

    def place(self, directory: Path) -> Path:
        """Where it is, or would be: an environment, or a prefix, of its own."""
        return directory / f"{self.installer}-{self.name}"

    def installed(self, directory: Path) -> bool:
        """Whether it is there, in the version that was asked for."""
        try:
            found = (self.place(directory) / "installed").read_text()
        except OSError:
            return False
        return found == self.requirement


@frozen(kw_only=True)
class Peer:
    """A peer in one of its modes.

    Attributes:
        name: in the report.
        source: what it is part of.
        command: makes the command from the directory, the upstream's port and the port to listen
            on.
        stdio: whether what it stands before is a stdio server that it starts.
        sessions: whether it gives agents a session each.
        path: what is posted to.
        prefix: what it puts before the names of tools.
        announces: whether it says `ready PORT`.
        env: variables for it.
    """

    name: str
    source: Source
    command: _Command
    stdio: bool = False
    sessions: bool = True
    path: str = "/mcp"
    prefix: str = ""
    announces: bool = False
    env: dict[str, str] = field(factory=dict)

    def subject(self, directory: Path) -> Subject:
        """How it is measured."""
        return Subject(
            name=self.name,
            command=lambda upstream, port: self.command(directory, upstream, port),
            path=self.path,
            announces=self.announces,
            env=self.env,
            leave_out=STDIO_SERVER if self.stdio else "",
        )


def directory() -> Path:
    """Where peers are installed."""
    default = Path(__file__).resolve().parents[2] / ".tox" / "bench-peers"
    return Path(os.environ.get("KARS_BENCH_PEERS", default)).resolve()


def found(where: Path) -> tuple[list[Peer], list[Source]]:
    """The peers that are installed, and what is missing."""
    there = [source for source in SOURCES if source.installed(where)]
    return (
        [peer for peer in PEERS if peer.source in there],
        [source for source in SOURCES if source not in there],
    )


def stdio_server() -> list[str]:
    """The command of the stdio server. Isolated: nothing but the standard library is loaded."""
    processors = ",".join(map(str, sorted(cores()[1])))
    interpreter, *rest = program(STDIO_SERVER.removesuffix(".py"), processors)
    return [interpreter, "-I", "-S", *rest]


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/mcp"


def _python(source: Source, name: str, *arguments: str) -> _Command:
    """One of our programs, in the peer's environment."""

    def command(directory: Path, upstream: int, port: int) -> list[str]:
        python = str(source.place(directory) / "bin" / "python")
        ours = [python, str(_PROGRAMS / f"{name}.py"), "--url", _url(upstream), "--port", str(port)]
        return [*ours, *arguments]

    return command


def _before_stdio(program: Callable[[Path], Sequence[str]], *arguments: str) -> _Command:
    """A program that is told the port with `--port` and the server after `--`."""

    def command(directory: Path, _: int, port: int) -> list[str]:
        return [*program(directory), *arguments, "--port", str(port), "--", *stdio_server()]

    return command


def _package(source: Source, directory: Path) -> Path:
    """Where a Node package is."""
    return source.place(directory) / "node_modules" / source.name


def _supergateway(*arguments: str) -> _Command:
    def command(directory: Path, _: int, port: int) -> list[str]:
        script = _package(SUPERGATEWAY, directory) / "dist" / "index.js"
        ours = ["node", str(script), "--stdio", shlex.join(stdio_server()), "--port", str(port)]
        return [*ours, "--outputTransport", "streamableHttp", "--logLevel", "none", *arguments]

    return command


def _mcp_proxy_cargo(directory: Path, upstream: int, port: int) -> list[str]:
    config = Path(tempfile.mkdtemp(prefix="kars-bench-")) / "proxy.toml"
    listen = f'[proxy.listen]\nhost = "127.0.0.1"\nport = {port}'
    backend = f'[[backends]]\nname = "box"\ntransport = "http"\nurl = "{_url(upstream)}"'
    config.write_text(f'[proxy]\nname = "bench"\nseparator = "_"\n{listen}\n{backend}\n')
    return [str(MCP_PROXY_CARGO.place(directory) / "bin" / "mcp-proxy"), "--config", str(config)]


FASTMCP: Final = Source(name="fastmcp", requirement="fastmcp==4.2.3", installer="pip")
CONTEXTFORGE: Final = Source(
    name="contextforge",
    requirement="mcp-contextforge-gateway==1.0.7.post20260921",
    installer="pip",
)
# 0.13 runs on the official SDK before 2.0 only, and does not say so.
MCP_PROXY_PYTHON: Final = Source(
    name="mcp-proxy", requirement="mcp-proxy==0.13.0 mcp<2", installer="pip"
)
STREAMABLEHTTP_PROXY: Final = Source(
    name="mcp-streamablehttp-proxy", requirement="mcp-streamablehttp-proxy==0.2.0", installer="pip"
)
SUPERGATEWAY: Final = Source(name="supergateway", requirement="supergateway@4.0.0", installer="npm")
MCP_PROXY_NPM: Final = Source(name="mcp-proxy", requirement="mcp-proxy@6.7.19", installer="npm")
MCP_PROXY_CARGO: Final = Source(name="mcp-proxy", requirement="mcp-proxy@0.6.0", installer="cargo")
SOURCES: Final = (
    FASTMCP,
    CONTEXTFORGE,
    MCP_PROXY_PYTHON,
    STREAMABLEHTTP_PROXY,
    SUPERGATEWAY,
    MCP_PROXY_NPM,
    MCP_PROXY_CARGO,
)


def _fastmcp(name: str, *arguments: str, sessions: bool = True) -> Peer:
    return Peer(
        name=f"fastmcp, {name}",
        source=FASTMCP,
        command=_python(FASTMCP, "fastmcp_proxy", *arguments),
        sessions=sessions,
    )


def _mcp_proxy_python(directory: Path) -> list[str]:
    script = MCP_PROXY_PYTHON.place(directory) / "bin" / "mcp-proxy"
    return [str(script), "--log-level", "ERROR"]


def _mcp_proxy_npm(directory: Path) -> list[str]:
    script = _package(MCP_PROXY_NPM, directory) / "dist" / "bin" / "mcp-proxy.mjs"
    return ["node", str(script), "--server", "stream", "--host", "127.0.0.1"]


def _streamablehttp_proxy(directory: Path) -> list[str]:
    script = STREAMABLEHTTP_PROXY.place(directory) / "bin" / "mcp-streamablehttp-proxy"
    return [str(script), "--log-level", "error"]


# FastMCP's modes are two choices: what it keeps upstream (a session for each request, one that all
# share, one for each agent session) and what agents are served (sessions or none, events or JSON).
PEERS: Final = (
    _fastmcp("as it comes"),
    _fastmcp("JSON", "--json"),
    _fastmcp("JSON, stateless", "--json", "--stateless", sessions=False),
    _fastmcp("one client, JSON", "--backend", "connected", "--json"),
    _fastmcp(
        "one client, JSON, stateless",
        *("--backend", "connected", "--json", "--stateless"),
        sessions=False,
    ),
    _fastmcp("stateful client", "--backend", "stateful"),
    _fastmcp("stateful client, JSON", "--backend", "stateful", "--json"),
    Peer(
        name="contextforge",
        source=CONTEXTFORGE,
        command=_python(CONTEXTFORGE, "contextforge"),
        sessions=False,
        prefix="bench_",
        announces=True,
    ),
    Peer(
        name="mcp-proxy (Rust)",
        source=MCP_PROXY_CARGO,
        command=_mcp_proxy_cargo,
        path="/",
        prefix="box_",
    ),
    Peer(
        name="supergateway, stateful",
        source=SUPERGATEWAY,
        command=_supergateway("--stateful"),
        stdio=True,
    ),
    Peer(
        name="supergateway, stateless",
        source=SUPERGATEWAY,
        command=_supergateway(),
        stdio=True,
        sessions=False,
    ),
    Peer(
        name="mcp-proxy (Python)",
        source=MCP_PROXY_PYTHON,
        command=_before_stdio(_mcp_proxy_python),
        stdio=True,
    ),
    Peer(
        name="mcp-proxy (Python), stateless",
        source=MCP_PROXY_PYTHON,
        command=_before_stdio(_mcp_proxy_python, "--stateless"),
        stdio=True,
        sessions=False,
    ),
    Peer(
        name="mcp-proxy (Node)",
        source=MCP_PROXY_NPM,
        command=_before_stdio(_mcp_proxy_npm),
        stdio=True,
    ),
    Peer(
        name="mcp-proxy (Node), stateless",
        source=MCP_PROXY_NPM,
        command=_before_stdio(_mcp_proxy_npm, "--stateless"),
        stdio=True,
        sessions=False,
    ),
    Peer(
        name="mcp-streamablehttp-proxy",
        source=STREAMABLEHTTP_PROXY,
        command=_before_stdio(_streamablehttp_proxy),
        stdio=True,
    ),
)
