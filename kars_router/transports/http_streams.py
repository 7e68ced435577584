"""Streams to an upstream: opening them, and what has to be known of them besides their bytes.

Owns TLS set-up, the count of accepted bytes, the check of an idle stream. Must not know HTTP or
the pool; how a TCP connection comes about is `dial`'s.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

import trio

from kars_router.transports.dial import dial, guard_for
from kars_router.transports.guard import Guard

Opener = Callable[[str, int, ssl.SSLContext | None], Awaitable[trio.abc.Stream]]

_CLOSE_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 0.001  # for streams that cannot be asked whether they have something


class CountedStream(trio.abc.Stream):
    """A socket stream that knows how many bytes the kernel has taken.

    `trio.SocketStream.send_all` does not say how far it got when it fails, and the fate of a call
    hangs on it: nothing accepted means certainly not executed.

    Bytes that the kernel accepted count as sent, although it may never have transmitted them:
    from there on nobody can tell. It may hold them, or have sent them and lost the
    acknowledgement, or the server may have acted on them and been reset since.

    Attributes:
        socket: the Trio socket underneath.
        sent: bytes accepted since the stream was opened.

    Args:
        stream: the stream to wrap; closed together with this one.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket: trio.socket.SocketType = stream.socket
        self.sent = 0
        self._patient = True
        self._more = False  # whether something is likely to be there
        self._poll: select.poll | None = None

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Within this, `receive_some` raises `trio.WouldBlock` where it would wait.

        For a look at what a TLS stream above holds. A cancel scope that has expired will not do:
        it also cancels where there was something to take.
        """
        self._patient = False
        try:
            yield
        finally:
            self._patient = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, counting. Cancelled in the middle, `sent` is exact."""
        rest = memoryview(data)
        if not rest:
            await self._stream.send_all(rest)  # a checkpoint, or the right error
        while rest:
            try:
                taken = await self.socket.send(rest)
            except OSError as exc:
                raise self._broken(exc) from exc
            self.sent += taken
            rest = rest[taken:]

    def send_now(self, data: bytes) -> int:
        """Send what the kernel takes at once, counting; 0 if it takes nothing. Never waits."""
        try:
            taken = os.write(self.socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._broken(exc) from exc
        self.sent += taken
        return taken

    async def receive_next(self, max_bytes: int) -> bytes:
        """As `receive_some`, in fewer steps.

        It waits first where nothing is likely to be there: where less came the last time than
        there was room for.
        """
        if self._more:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            handle = self.socket.fileno()
            if handle < 0:
                raise trio.ClosedResourceError("this connection was closed here")
            at_once, self._more = self._more, False
            if not at_once:
                await trio.lowlevel.wait_readable(handle)
            try:
                # Asked again: it may have been closed since, and the number be another file's.
                data = os.read(self.socket.fileno(), max_bytes)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise self._broken(exc) from exc
            self._more = len(data) == max_bytes
            if at_once:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return data

    def receive_now(self, max_bytes: int) -> bytes | None:
        """What has come; empty at the end, None if nothing has. Never waits."""
        try:
            return os.read(self.socket.fileno(), max_bytes)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._broken(exc) from exc

    def is_readable(self) -> bool:
        """Whether the peer has written something, or has closed."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.socket.fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """As `aclose`; never waits."""
        self.socket.close()

    def _broken(self, exc: OSError) -> Exception:
        if self.socket.fileno() < 0:
            return trio.ClosedResourceError("this connection was closed here")
        return trio.BrokenResourceError(str(exc))

    async def wait_send_all_might_not_block(self) -> None:
        """As for `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As for `trio.abc.ReceiveStream`; see also `impatient`."""
        if not self._patient and not self.socket.is_readable():
            raise trio.WouldBlock
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        """As for `trio.abc.AsyncResource`."""
        await self._stream.aclose()


def guarded_opener(host: str, networks: Iterable[str] = ()) -> Opener:
    """The opener for one server, which connects only to where its URL's host may lead.

    Args:
        host: a name, or an address without brackets.
        networks: CIDR blocks that a name may lead to although they are not public.

    Raises:
        ValueError: a network is none.
    """
    return functools.partial(open_stream, guard=guard_for(host, networks))


async def open_stream(
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    *,
    guard: Guard | None = None,
    server_name: str | None = None,
) -> trio.abc.Stream:
    """Connect over TCP, and TLS if there is a context.

    Args:
        host: a name, or an address without brackets.
        port: 1 to 65535.
        context: checks the server's certificate against `host`, which is also sent as SNI.
        guard: says which addresses of `host` may be connected to; without one, the usual ones.
        server_name: stands in for `host` in TLS.

    Raises:
        AddressRefusedError: none of its addresses may be.
        OSError: no connection.
        trio.BrokenResourceError: no TLS; the cause says why.
        ValueError: `host` cannot be a host name.

    Cancelled, it leaves no socket open.
    """
    tcp = CountedStream(await dial(guard or guard_for(host), port))  # Trio sets TCP_NODELAY
    if context is None:
        return tcp
    try:
        # RFC 6066 section 3: no trailing dot in SNI. `https_compatible`: RFC 9112 section 9.8; many
        # servers close without a close_notify, and framing tells a cut body anyway.
        name = server_name or host.removesuffix(".")
        tls = trio.SSLStream(tcp, context, server_hostname=name, https_compatible=True)
        await tls.do_handshake()
    except BaseException:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await trio.aclose_forcefully(tcp)
        raise
    return tls


def bytes_sent(stream: trio.abc.Stream) -> int | None:
    """How many bytes the network has accepted from `stream`; None if it does not count.

    For TLS these are bytes of ciphertext; none of them means no byte of plaintext either.
    """
    sent = getattr(_innermost(stream), "sent", None)
    return sent if isinstance(sent, int) else None


async def is_stale(stream: trio.abc.Stream) -> bool:
    """Tell whether an idle stream has ended, failed or holds bytes that nobody asked for.

    Takes no time for a socket, with TLS or without, and a millisecond for anything else. It may
    consume a byte, so a stale stream is good for closing only. Cancelled, the stream is in doubt.
    """
    wire = _innermost(stream)
    try:
        if not isinstance(wire, CountedStream):
            with trio.move_on_after(_PROBE_SECONDS):
                await stream.receive_some(1)
                return True
            return False
        if wire is stream:
            return wire.is_readable()
        # The socket alone does not tell: a record may wait above it, or hold but a session ticket.
        with wire.impatient():
            await stream.receive_some(1)
    except trio.WouldBlock:
        return False
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return True
    return True


def _innermost(stream: trio.abc.Stream) -> trio.abc.Stream:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream
