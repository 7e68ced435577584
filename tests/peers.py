"""Real peer processes for tests: start, wait until ready, log, and end for certain.

Owns processes, ports, logs and the cache of installed peers (Node packages, virtual
environments). Knows nothing about MCP: what a peer speaks is its test's business.

Everything installed lives under `KARS_PEERS_DIR` (default: `.tox/peers` in the repository) in a
directory named after exactly what was asked for, so that two test runs may share one cache and
a changed request never disturbs a run that uses the old one. Delete the directory to refresh it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from attrs import define, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"

# Settings of the test run itself that must not change how somebody else's program behaves.
_NOT_INHERITED = ("NODE_OPTIONS", "PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV")

# Kills the groups it was told about once its stdin closes, that is, when the test run is gone,
# however it went: context managers do not run after a SIGKILL.
_MINDER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    sign, group = line[0], int(line[1:])
    groups.add(group) if sign == "+" else groups.discard(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


def missing(reason: str) -> NoReturn:
    """End the test as a skip that names `reason`; as a failure when the variable `CI` is set."""
    if os.environ.get("CI"):
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def require(tool: str, why: str) -> str:
    """Path of the program `tool`; without it the test ends as `missing` says, with `why`."""
    found = shutil.which(tool)
    if found is None:
        missing(f"{tool} is not installed: {why}")
    return found


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on.

    Below the range the kernel hands to outgoing connections, so that no client takes it between
    this call and the bind of the peer.
    """
    for _ in range(200):
        port = random.randint(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    pytest.fail("no free port between 20000 and 32000")


@define
class Peer:
    """One running process in a group of its own. Made by `start_peer`."""

    argv: Sequence[str]
    log_path: Path
    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def log(self) -> str:
        """Everything written so far to stdout and stderr, in the order it was written."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool], what: str, deadline: float = 30.0) -> None:
        """Return once `condition` holds; `what` names it in the message.

        Fails the test, with the end of the log, if the process exits first or `deadline`
        seconds pass.
        """
        end = time.monotonic() + deadline
        while not condition():
            if self.returncode is not None:
                problem = f"exited with {self.returncode} before {what}"
            elif time.monotonic() > end:
                problem = f"ran for {deadline:g} s without: {what}"
            else:
                # Its end is the one event another process gives; all else is asked for again.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(0.02)
                continue
            tail = "\n".join(self.log().splitlines()[-40:])
            pytest.fail(f"{' '.join(self.argv)} {problem}\n{tail}", pytrace=False)

    def signal(self, number: int) -> None:
        """Send signal `number` to the process alone, as a pod's kubelet does."""
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Exit status; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        return self._process.wait(timeout)

    def stop(self, grace: float = 5.0) -> int:
        """SIGTERM, up to `grace` seconds, then SIGKILL for all that is left. Exit status.

        That is the process, its group, and descendants that went into groups of their own, as
        browsers do.
        """
        # Taken while their parents live: an orphan's ancestry is lost.
        descendants = _descendants(self.pid)
        if self.returncode is None and grace > 0:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid, started in descendants.items():
            # The number may be another process's by now.
            if _started(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        code = self._process.wait()
        _mind("-", self.pid)
        return code

    def kill(self) -> int:
        """SIGKILL at once, as `stop` does it after its grace. Exit status."""
        return self.stop(grace=0)


@contextlib.contextmanager
def start_peer(
    argv: Sequence[str | os.PathLike[str]],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    port: int | None = None,
    ready_url: str | None = None,
    ready: Callable[[Peer], bool] | None = None,
    deadline: float = 30.0,
) -> Iterator[Peer]:
    """Run `argv` until the block ends; enter the block once the peer is ready.

    Ready means everything given holds: something accepts on 127.0.0.1:`port`, `ready_url`
    answers with any HTTP status, `ready(peer)` is true. `env` is laid over this process's
    environment. Both output streams go to `log_path`. Fails the test with the end of the log
    if the peer exits first or a condition takes more than `deadline` seconds. Leaving the block
    ends the whole group.
    """
    command = [os.fspath(part) for part in argv]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**peer_environment(), **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    peer = Peer(command, log_path, process)
    try:
        _mind("+", peer.pid)
        if port is not None:
            peer.wait_for(lambda: _accepts(port), f"port {port} accepts", deadline)
        if ready_url is not None:
            peer.wait_for(
                lambda: status_of(ready_url) is not None, f"{ready_url} answers", deadline
            )
        if ready is not None:
            peer.wait_for(lambda: ready(peer), "it said it was ready", deadline)
        yield peer
    finally:
        peer.stop()


@frozen
class RunningRouter:
    """A `kars run` process that listens. URLs have no trailing slash."""

    agent_url: str
    admin_url: str
    process: Peer

    def mcp(self, server: str | None = None) -> str:
        """URL of the endpoint of one server, or of the aggregated one."""
        return f"{self.agent_url}/mcp" + (f"/{server}" if server else "")

    def wait_until_ready(self, deadline: float = 30.0) -> None:
        """Return once `/readyz` says 200. Fails the test after `deadline` seconds."""
        url = f"{self.admin_url}/readyz"
        self.process.wait_for(lambda: status_of(url) == 200, f"{url} says 200", deadline)


@contextlib.contextmanager
def run_router(
    config: Mapping[str, Any],
    tmp_path: Path,
    *,
    listen: str = f"{LOOPBACK}:0",
    admin: str = f"{LOOPBACK}:0",
    env: Mapping[str, str] | None = None,
    deadline: float = 30.0,
) -> Iterator[RunningRouter]:
    """Run the router on `config` (the content of kars.yaml) until the block ends.

    Files go to `tmp_path`: `kars.yaml` (JSON, which is YAML) and `router.log`. The addresses
    come from the log line whose `event` is `listening`. Which listener it has is said by pytest's
    option `--listener` or the fixture `each_listener`, unless `config` does.
    """
    file = tmp_path / "kars.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    argv = [sys.executable, "-m", "kars_router", "run", "-c", str(file)]
    argv += ["--listen", listen, "--admin", admin]
    if "listener" not in config:
        argv += listener_option()
    # The router is ours: what the test run asks of warnings and imports holds for it too.
    own = {name: os.environ[name] for name in _NOT_INHERITED if name in os.environ}
    with start_peer(
        argv,
        log_path=tmp_path / "router.log",
        env={**own, **(env or {})},
        cwd=tmp_path,
        ready=lambda peer: _listening(peer.log()) is not None,
        deadline=deadline,
    ) as peer:
        line = _listening(peer.log())
        assert line is not None
        wanted = config.get("listener") or os.environ.get("KARS_TEST_LISTENER") or "hypercorn"
        assert line["listener"] == wanted
        yield RunningRouter(line["agent"].rstrip("/"), line["admin"].rstrip("/"), peer)


def listener_option() -> list[str]:
    """What a `kars run` is told so that it has the listener that this test run asks for."""
    chosen = os.environ.get("KARS_TEST_LISTENER")
    return ["--listener", chosen] if chosen else []


def log_events(log: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines of `log`, in order; other lines are passed over."""
    events = []
    for line in log.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
    return events


def peer_environment() -> dict[str, str]:
    """This process's environment, less what is meant for the test run only.

    Loopback never goes through a proxy.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


def peers_dir() -> Path:
    """Where installed peers are kept: `KARS_PEERS_DIR`, or `.tox/peers` in the repository."""
    return Path(os.environ.get("KARS_PEERS_DIR") or REPOSITORY / ".tox" / "peers").resolve()


def npm_peer(name: str, packages: Sequence[str]) -> Path:
    """Directory with `node_modules` that holds `packages` (npm specifiers). Installed once."""

    def install(target: Path) -> None:
        npm = require("npm", f"it installs {', '.join(packages)}")
        (target / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        _install([npm, "install", "--no-audit", "--no-fund", "--no-save", *packages], target)

    return _installed(name, [*packages], install)


def node22() -> Path:
    """A Node 22 executable, installed from npm: peers use APIs that older ones lack."""
    return npm_peer("node", ["node@22"]) / "node_modules" / ".bin" / "node"


def venv_peer(name: str, requirements: Sequence[str]) -> Path:
    """Python of a virtual environment that holds `requirements`. Installed once."""

    def install(target: Path) -> None:
        _install([sys.executable, "-m", "venv", "--clear", str(target / "venv")], target)
        pip = [str(target / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        _install([*pip, *requirements], target)

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return _installed(name, [version, *requirements], install) / "venv" / "bin" / "python"


def _installed(name: str, request: Sequence[str], install: Callable[[Path], None]) -> Path:
    """The directory for `request`, filled by `install` unless an earlier call finished it."""
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()[:10]
    target = peers_dir() / f"{name}-{digest}"
    done = target / ".complete"
    if done.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            # What an interrupted installation left is worth nothing.
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            install(target)
            done.write_text("\n".join(request) + "\n", encoding="utf-8")
    return target


def _install(argv: Sequence[str], cwd: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    result = subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-12:])
        missing(f"could not install: {' '.join(argv[1:])} ended with {result.returncode}\n{tail}")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def status_of(url: str, trusted: ssl.SSLContext | None = None) -> int | None:
    """Status of the answer to a GET of `url`; None without an answer."""
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as answer:
        answer.close()
        return answer.code
    except OSError:
        return None


def _listening(log: str) -> dict[str, Any] | None:
    return next((line for line in log_events(log) if line.get("event") == "listening"), None)


def _descendants(pid: int) -> dict[int, int]:
    """Children of `pid` and theirs with the ticks at which each started, where /proc tells."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        parent = _stat(int(entry.name), 1)
        if parent is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = children.get(pid, [])
    for child in found:
        found.extend(children.get(child, []))
    return {child: started for child in found if (started := _started(child)) is not None}


def _started(pid: int) -> int | None:
    return _stat(pid, 19)


def _stat(pid: int, field: int) -> int | None:
    """A field of /proc/PID/stat, counted after the name; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The program's name is in brackets and may hold spaces and brackets itself.
    return int(stat.rpartition(")")[2].split()[field])


def _mind(sign: str, group: int) -> None:
    """Tell the minder that process group `group` starts (`+`) or has ended (`-`)."""
    pipe = _minder().stdin
    assert pipe is not None
    pipe.write(f"{sign}{group}\n".encode())
    pipe.flush()


@functools.cache
def _minder() -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", _MINDER]
    minder = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
    # At a normal end of the run there is nothing left to kill; only collect it.
    atexit.register(minder.communicate, timeout=5)
    return minder
