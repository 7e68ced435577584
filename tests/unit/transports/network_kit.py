"""A network for one test: names lead where the test says, addresses to listeners on loopback."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio
from attrs import define, field

Answers = list[Sequence[str]]


@define
class Network(trio.abc.HostnameResolver, trio.abc.SocketFactory):
    """Installed for the rest of the test's run.

    Attributes:
        names: for each name the answers to come, one for each look-up; the last one stays.
        ports: the port on loopback where what is sent to an address arrives.
        silent: addresses that never answer.
        looked_up: names in the order of the look-ups.
        tried: addresses in the order of the attempts to connect.
    """

    names: dict[str, Answers] = field(factory=dict)
    ports: dict[str, int] = field(factory=dict)
    silent: set[str] = field(factory=set)
    looked_up: list[str] = field(factory=list)
    tried: list[str] = field(factory=list)
    sockets: list[trio.socket.SocketType] = field(factory=list)

    def install(self) -> Network:
        trio.socket.set_custom_hostname_resolver(self)
        trio.socket.set_custom_socket_factory(self)
        return self

    async def getaddrinfo(  # type: ignore[override]
        self, host: bytes | None, port: int, *_: object
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        name = (host or b"").decode()
        self.looked_up.append(name)
        if name not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [_entry(address, port) for address in answer]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError

    async def reach(self, address: str, connect: Callable[[Any], Awaitable[None]]) -> None:
        """Gets an attempt to connect through, or not."""
        await trio.lowlevel.checkpoint()
        if address in self.silent:
            await trio.sleep_forever()
        if address not in self.ports:
            raise OSError(errno.ECONNREFUSED, f"nobody is at {address}")
        await connect(("127.0.0.1", self.ports[address]))

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - the interface's
        proto: int = 0,
    ) -> trio.socket.SocketType:
        # Whatever the family: it ends on loopback, where there may be no IPv6.
        del family
        made = trio.socket.from_stdlib_socket(socket.socket(socket.AF_INET, type, proto))
        real = made.connect

        async def connect(place: Any) -> None:
            self.tried.append(place[0])
            await self.reach(place[0], real)

        made.connect = connect  # type: ignore[method-assign, assignment]
        self.sockets.append(made)
        return made

    @property
    def sockets_open(self) -> int:
        return sum(each.fileno() >= 0 for each in self.sockets)


def _entry(address: str, port: int) -> tuple[object, ...]:
    bare, _, scope = address.partition("%")
    if ":" in bare:
        place = (bare, port, 0, int(scope or 0))
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", place)
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (bare, port))


@contextlib.asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server on loopback; the value is its port."""

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(stream)
        await trio.aclose_forcefully(stream)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()
