"""A socket stream that counts what was sent, and can do without waiting what needs none.

Towards servers and, on the default listener, towards agents. Must not know what is sent.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

import trio

from kars_router.transports.lookout import Lookout

_READ: Final = 64 * 1024
# What is longer comes in pieces, and may not be whole.
_SHORT: Final = 4 * 1024


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
        self._got = 0  # bytes that were read last
        self._poll: select.poll | None = None
        self._lookout: Lookout | None = None
        self._wait_readable: Callable[[int], Awaitable[None]] = trio.lowlevel.wait_readable

    def share_waits(self, lookout: Lookout | None) -> None:
        """From the next time on, wait together with others for what comes; None: no longer."""
        handle = self.socket.fileno()
        if self._lookout is not None and handle >= 0:
            # Also where nobody waits: it must not take the next file of this number for this one.
            self._lookout.forget(handle)
        self._lookout = lookout
        self._wait_readable = (
            trio.lowlevel.wait_readable if lookout is None else partial(self._wait_by, lookout)
        )

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
                await self._wait_readable(handle)
            try:
                # Asked again: it may have been closed since, and the number be another file's.
                data = os.read(self.socket.fileno(), max_bytes)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise self._broken(exc) from exc
            self._got = len(data)
            self._more = self._got == max_bytes
            if at_once:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return data

    async def _wait_by(self, lookout: Lookout, handle: int) -> None:
        # Of what comes in pieces, only the first may be late.
        waits = trio.lowlevel if self._got > _SHORT else lookout
        await waits.wait_readable(handle)

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
        self._leave_lookout()
        self.socket.close()

    def _leave_lookout(self) -> None:
        # Trio tells its own waiters only. Those of the lookout find it closed when they run.
        if self._lookout is not None:
            self.share_waits(None)

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
        if self._lookout is not None and max_bytes is None:  # as TLS asks
            return await self.receive_next(_READ)
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        """As for `trio.abc.AsyncResource`."""
        self._leave_lookout()
        await self._stream.aclose()
