"""Two network namespaces with a wire between them: a pod's, and the world's.

Owns the namespaces, the wire, and who a process in them is. A namespace lives as long as a process
that does nothing in it, so that nothing is left of it however a test run ends. Knows no rules.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen
from peers import Peer, missing, require, start_peer

from kars_router.guard import ROUTER

PROGRAMS = Path(__file__).resolve().parent / "programs"
POD, POD6 = "10.77.0.2", "fd77::2"
WORLD, WORLD6 = "10.77.0.1", "fd77::1"
# Further addresses of the world; its DNS servers are at the first of each family.
MORE = ("10.77.0.53", "10.77.0.54", "fd77::53", "fd77::54")
ELSEWHERE6 = "fd99::9"  # an address of nobody, which the pod would reach through the world
DNS, OTHER_DNS, DNS6, OTHER_DNS6 = MORE
MARKER = 7777
_SECONDS = 60
_NOTHING = "import signal; print('here', flush=True); signal.pause()"


def needs() -> None:
    """Ends the test, as `missing` says, where such namespaces cannot be had."""
    if os.geteuid() != 0:
        missing("only root may make network namespaces: run as root")
    require("nft", "it is what `kars guard` runs (package nftables)")
    require("ip", "it makes the wire between namespaces (package iproute2)")
    for tool in ("nsenter", "setpriv", "unshare"):
        require(tool, "it starts processes in namespaces (package util-linux)")
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        # Not installed by anybody: a container that may not make namespaces.
        pytest.skip("the kernel or the container allows no network namespaces here")


def as_user(uid: int, argv: Sequence[str], *, keeps: str = "") -> list[str]:
    """A command line run by a user as a container does it: no capability, no way to get any.

    Args:
        uid: the user, and the group.
        argv: what to run.
        keeps: a capability that is left to it.
    """
    kept = f"-all,+{keeps}" if keeps else "-all"
    return [
        *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"),
        *(f"--bounding-set={kept}", f"--inh-caps={kept}", f"--ambient-caps={kept}"),
        *argv,
    ]


# Reading files that are closed to the user: the checkout may be in root's home.
READS_ALL = "dac_read_search"


def stdlib_python() -> list[str]:
    """A Python that users without access to our environment can start; standard library only."""
    found = ["/usr/bin/python3", os.path.realpath(sys.executable)]
    return [next(each for each in found if Path(each).is_file()), "-I", "-S"]


def guard(*options: str) -> list[str]:
    """The command line of `kars guard`: root, with the one capability that it has in a pod."""
    kept = "-all,+net_admin,+dac_read_search"
    return [
        *("setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", "--no-new-privs"),
        # The one that is installed, and not what may be in the working directory.
        *(sys.executable, "-P", "-m", "kars_router", "guard", *options),
    ]


@frozen
class Namespace:
    """A network namespace, by the process that keeps it."""

    keeper: Peer

    def argv(self, argv: Sequence[str]) -> list[str]:
        """A command line that runs in it."""
        return ["nsenter", f"--target={self.keeper.pid}", "--net", *argv]

    def run(
        self, *argv: str, status: int | None = 0, text: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as root to its end; `status` is what it must exit with, None for any."""
        done = subprocess.run(
            self.argv(argv),
            input=text,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert status in (None, done.returncode), (argv, done.returncode, done.stdout, done.stderr)
        return done

    def set(self, **settings: object) -> None:
        """Settings under /proc/sys/net, with `__` for a slash."""
        for name, value in settings.items():
            path = f"/proc/sys/net/{name.replace('__', '/')}"
            self.run("sh", "-c", 'echo "$0" > "$1"', str(value), path)

    def guard(
        self, *options: str, status: int | None = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `kars guard` in it."""
        return self.run(*guard(*options), status=status, env=env)

    def python(self, uid: int, program: str, *arguments: str) -> Any:
        """Runs a program of ours as a user without capabilities; what it prints, as JSON."""
        source = (PROGRAMS / f"{program}.py").read_text(encoding="utf-8")
        argv = as_user(uid, [*stdlib_python(), "-c", source, *arguments])
        done = self.run(*argv)
        return json.loads(done.stdout)


@define
class Wire:
    """What the pod sends on its wire, as the world's end sees it."""

    sniffer: Peer
    network: Network
    _seen: int = 0
    _marks: int = 0

    def frames(self) -> list[dict[str, Any]]:
        """What came since the last time, neighbour discovery left out."""
        self._marks += 1
        # The router's user may send, and frames keep their order.
        text = f"mark {self._marks}"
        self.network.attempt(ROUTER, {"kind": "tell", "to": WORLD, "port": MARKER, "data": text})

        def marked() -> bool:
            return any(frame["data"].endswith(text.encode().hex()) for frame in self._all())

        self.sniffer.wait_for(marked, "the mark was seen")
        everything = self._all()
        new, self._seen = everything[self._seen :], len(everything)
        return [frame for frame in new if not (frame["neighbours"] or frame["port"] == MARKER)]

    def _all(self) -> list[dict[str, Any]]:
        lines = self.sniffer.log().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line[-1] == "\n"]


@define
class Network:
    """A pod and the world, with a wire between them that each calls eth0."""

    pod: Namespace
    world: Namespace
    tmp_path: Path
    _stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)

    def guard(self, *options: str) -> str:
        """Runs `kars guard` in the pod; what it prints."""
        return self.pod.guard(*options).stdout

    def attempt(self, uid: int, *attempts: dict[str, Any]) -> list[str]:
        """How attempts of a user in the pod ended, each in a word; see programs/attempt.py."""
        found: list[str] = self.pod.python(uid, "attempt", json.dumps(attempts))
        return found

    def from_outside(self, *attempts: dict[str, Any]) -> list[str]:
        """The same from the world, as a kubelet does."""
        found: list[str] = self.world.python(0, "attempt", json.dumps(attempts))
        return found

    def start(self, argv: Sequence[str], name: str, ready: str, **more: Any) -> Peer:
        """Starts a process that ends with the network; returns once its log has `ready`."""
        return self._stack.enter_context(
            start_peer(
                argv,
                log_path=self.tmp_path / f"{name}.log",
                ready=lambda peer: ready in peer.log(),
                **more,
            )
        )

    def start_program(
        self, where: Namespace, uid: int | None, program: str, *arguments: str
    ) -> Peer:
        """Starts a program of ours, standard library only; as root in every sense if no user."""
        source = (PROGRAMS / f"{program}.py").read_text(encoding="utf-8")
        argv = [*stdlib_python(), "-c", source, *arguments]
        number = len(list(self.tmp_path.glob(f"{program}-*.log")))
        command = argv if uid is None else as_user(uid, argv)
        return self.start(where.argv(command), f"{program}-{number}", "ready")

    def serve(self, where: Namespace, uid: int | None, *arguments: str) -> Peer:
        """Starts servers; see programs/world.py for the arguments."""
        return self.start_program(where, uid, "world", *arguments)

    def sniff(self) -> Wire:
        """Begins to watch the wire."""
        return Wire(self.start_program(self.world, None, "sniff"), self)

    def link_local(self, where: Namespace) -> str:
        """The link-local address of an end of the wire."""
        shown = where.run("ip", "-json", "-6", "address", "show", "dev", "eth0", "scope", "link")
        listed = [each for link in json.loads(shown.stdout) for each in link.get("addr_info", ())]
        return next(str(each["local"]) for each in listed if each)


@contextlib.contextmanager
def _namespace(name: str, tmp_path: Path) -> Iterator[Namespace]:
    """A namespace whose loopback is up."""
    argv = ["unshare", "--net", *stdlib_python(), "-c", _NOTHING]
    log = tmp_path / f"{name}.log"
    with start_peer(argv, log_path=log, ready=lambda peer: "here" in peer.log()) as keeper:
        made = Namespace(keeper)
        # Addresses can be used at once.
        made.set(ipv6__conf__all__accept_dad=0, ipv6__conf__default__accept_dad=0)
        made.run("ip", "link", "set", "lo", "up")
        yield made


@contextlib.contextmanager
def open_network(tmp_path: Path) -> Iterator[Network]:
    """A pod and the world in which servers listen; see programs/world.py for what does where."""
    with (
        _namespace("pod", tmp_path) as pod,
        _namespace("world", tmp_path) as world,
        contextlib.ExitStack() as stack,
    ):
        wire = ("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0")
        pod.run(*wire, "netns", str(world.keeper.pid))
        for where, addresses in (
            (pod, (f"{POD}/24", f"{POD6}/64")),
            (world, (f"{WORLD}/24", f"{WORLD6}/64", *MORE)),
        ):
            for address in addresses:
                where.run("ip", "address", "add", address, "dev", "eth0")
            where.run("ip", "link", "set", "eth0", "up")
        pod.run("ip", "route", "add", "default", "via", WORLD)
        pod.run("ip", "-6", "route", "add", "default", "via", WORLD6)
        network = Network(pod, world, tmp_path, stack)
        network.serve(world, None, "7000,53", "7001,53,7777", WORLD, WORLD6, *MORE)
        yield network


def own_directory(tmp_path: Path, name: str, uid: int) -> Path:
    """A directory of a user's own."""
    path = tmp_path / name
    path.mkdir()
    shutil.chown(path, uid, uid)
    return path
