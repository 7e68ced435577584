from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys

import pytest
import trio
from unit.transports.test_stdio import SECONDS, descriptors

from kars_router.transports.child import start_child
from kars_router.transports.stdio import environment


async def test_who_gets_the_number_of_a_descriptor_that_told_of_the_end_is_left_alone() -> None:
    """A process that is being started elsewhere has a copy of every descriptor for a moment."""
    program = """
import os, signal
ready, tell = os.pipe()
if os.fork():
    os.read(ready, 1)
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
os.write(tell, b"x")
signal.pause()
"""
    with trio.fail_after(SECONDS), contextlib.ExitStack() as stack:
        argv = [sys.executable, "-I", "-S", "-c", program]
        child = await start_child(argv, environment({}, os.environ))
        stack.callback(child.close)
        number = child._end
        assert number >= 0
        stack.callback(os.close, os.dup(number))
        said = b""
        while child.status is None or not said.endswith(b"\n"):
            said += b"".join(chunk for _, chunk in await child.hear())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        ours, theirs = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, number + 1) for end in (ours, theirs)]
        for end in (ours, theirs):
            os.close(end)
        os.dup2(high[0], number)
        for end in (*high, number):
            stack.callback(os.close, end)
        os.write(high[1], b"another's")
        os.kill(int(said), signal.SIGKILL)  # it holds the pipes open
        while child.is_open:
            assert {chunk for _, chunk in await child.hear()} == {b""}
        assert os.read(number, 100) == b"another's"


async def test_no_descriptor_is_left_of_a_command_that_cannot_be_started() -> None:
    await trio.to_thread.run_sync(descriptors)  # the thread is there
    before = descriptors()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            await start_child(["no-such-program-anywhere"], {})
    assert descriptors() <= before
