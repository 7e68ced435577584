from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define
from structlog.testing import capture_logs
from unit.transports.transport_kit import Bench, StdioPeer, open_stdio, until

from kars_router.errors import CallFailed
from kars_router.loss import fate_of
from kars_router.model import Failure, Fate, Phase, Sent
from kars_router.transports.base import Delivery, Position
from kars_router.transports.stdio import INHERITED, Stdio, environment
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

SECONDS = 10
CALL = jsonrpc.request(b"1", "tools/call", b"{}")


@define
class Child:
    """A connection to a program of the test's own."""

    connection: Stdio
    taken: list[Message]

    async def call(self, delivery: Delivery | None = None) -> None:
        await self.connection.send(
            CALL, method="tools/call", delivery=delivery or Delivery(), ident=b"1"
        )

    async def fails(self) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            await self.call()
        return caught.value


@asynccontextmanager
async def run(program: str, *arguments: str, **options: Any) -> AsyncIterator[Child]:
    """Runs a Python program as the server."""
    taken: list[Message] = []
    options.setdefault("env", environment({}, os.environ))
    connection = Stdio(
        [sys.executable, "-I", "-S", "-c", program, *arguments],
        server="s",
        deliver=lambda message, _: taken.append(message),
        **options,
    )
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await connection.open(nursery)
            yield Child(connection, taken)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def dying(pid: int) -> AsyncIterator[None]:
    """The process lives at the beginning, and comes to its end within the time of a test."""
    watched = os.pidfd_open(pid)
    try:
        assert not select.select([watched], [], [], 0)[0]
        yield
        with trio.fail_after(SECONDS):
            await trio.lowlevel.wait_readable(watched)
    finally:
        os.close(watched)


def test_a_child_gets_what_is_given_and_little_else() -> None:
    own = {name: f"own {name}" for name in (*INHERITED, "TOKEN_OF_ANOTHER_SERVER")}
    found = environment({"LANG": "C", "API_KEY": "k"}, own)
    assert found == {**{n: f"own {n}" for n in INHERITED}, "LANG": "C", "API_KEY": "k"}


async def test_the_environment_reaches_the_child() -> None:
    program = (
        "import json,os;input();"
        "print(json.dumps({'jsonrpc':'2.0','id':1,'result':dict(os.environ)}),flush=True)"
    )
    env = {"PATH": os.environ["PATH"], "ONLY": "this"}
    async with run(program, env=env) as child:
        await child.call()
        assert child.taken[0].result is not None
        got = json.loads(child.taken[0].result)
        got.pop("LC_CTYPE", None)  # Python sets it by itself
        assert got == env


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["no-such-program-anywhere"], "No such file or directory"),
        ([str(Path(__file__).parent)], "Permission denied"),
        (["true", "a\0b"], "embedded null byte"),
    ],
)
async def test_a_command_that_cannot_be_started(argv: list[str], reason: str) -> None:
    connection = Stdio(argv, env=environment({}, os.environ), server="s", deliver=lambda *_: None)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            with pytest.raises(CallFailed) as caught:
                await connection.open(nursery)
            await connection.close()
    failure = caught.value.failure
    assert (failure.code, failure.phase, failure.sent) == ("connect", Phase.CONNECT, Sent.NO)
    assert repr(argv[0]) in failure.detail
    assert reason in failure.detail


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; input(); sys.exit(3)", "its process exited with status 3"),
        ("import os; input(); os.kill(os.getpid(), 9)", "its process was ended by SIGKILL"),
        ("import os; input(); os.kill(os.getpid(), 40)", "its process was ended by signal 40"),
        (
            "import sys; input(); sys.exit('no such module: \\x1b[31mplaywright')",
            "status 1; its last line: no such module: \ufffd[31mplaywright",
        ),
        (
            "import os, time; input(); os.close(1); time.sleep(60)",
            "its process closed its output",
        ),
    ],
)
async def test_why_a_channel_ended(program: str, said: str) -> None:
    async with run(program) as child:
        failure = (await child.fails()).failure
        assert failure.code == "channel_closed"
        assert said in failure.detail
        assert failure.sent is Sent.YES


async def test_a_process_that_ended_while_nobody_called() -> None:
    async with run("pass") as child:
        with pytest.raises(CallFailed):
            await child.connection.listen(Position(), lambda: None)
        failure = (await child.fails()).failure
        assert "exited with status 0" in failure.detail
        assert failure.sent is Sent.NO


async def test_children_of_the_child_end_with_it() -> None:
    program = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"],
    stdout=subprocess.PIPE)
child.stdout.readline()
input()
print('{"jsonrpc":"2.0","id":1,"result":%d}' % child.pid, flush=True)
sys.stdin.read()
"""
    async with run(program) as child:
        await child.call()
        async with dying(int(child.taken[0].result or b"0")):
            await child.connection.close()


async def test_an_orphan_that_holds_the_pipes_does_not_keep_the_channel_open() -> None:
    program = """
import os, signal
input()
if not (pid := os.fork()):
    signal.pause()
print('{"jsonrpc":"2.0","id":1,"result":%d}' % pid, flush=True)
input()
os._exit(5)
"""
    async with run(program) as child:
        await child.call()
        async with dying(int(child.taken[0].result or b"0")):
            failure = (await child.fails()).failure
        assert "exited with status 5" in failure.detail


async def test_an_orphan_that_never_stops_talking_does_not_keep_the_channel_open() -> None:
    program = """
import os, signal
input()
if not (pid := os.fork()):
    os.setsid()
    print('{"jsonrpc":"2.0","method":"orphan","params":{"pid":%d}}' % os.getpid(), flush=True)
    while True:
        os.write(1, b'{"jsonrpc":"2.0","method":"n"}\\n' * 100)
signal.pause()
"""
    async with run(program) as child, trio.open_nursery() as nursery:
        failures: list[Failure] = []

        async def call() -> None:
            failures.append((await child.fails()).failure)

        nursery.start_soon(call)
        await until(lambda: any(message.method == "n" for message in child.taken))
        started = trio.current_time()
        os.kill(child.connection.pid or 0, signal.SIGKILL)
        await until(lambda: bool(failures))
        assert trio.current_time() - started < 3.0
        assert "ended by SIGKILL" in failures[0].detail
        orphan = next(message for message in child.taken if message.method == "orphan")
        os.kill(jsonrpc.decode(orphan.params)["pid"], signal.SIGKILL)


async def test_an_end_is_noticed_where_the_kernel_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, "as in some sandboxes")

    monkeypatch.setattr(os, "pidfd_open", missing)
    program = """
import os, signal
input()
if not (pid := os.fork()):
    signal.pause()
os._exit(5)
"""
    with capture_logs() as logs:
        async with run(program) as child:  # and an orphan holds the pipes
            assert "exited with status 5" in (await child.fails()).failure.detail
        async with run("import sys; sys.stdin.read(); sys.exit(6)") as child:
            await child.connection.close()
    ended = [line["status"] for line in logs if line["event"] == "process_ended"]
    assert ended == [5, 6]


async def test_what_a_process_had_not_read_was_not_executed() -> None:
    """A simple server takes one message after the other; what waits behind is none of its doing."""
    program = """
import os, signal, sys
left = int(sys.argv[1])
while left:
    left -= len(os.read(0, left))
print('{"jsonrpc":"2.0","method":"read"}', flush=True)
signal.pause()
"""
    requests = [jsonrpc.request(b"%d" % n, "tools/call") for n in range(4)]
    deliveries = [Delivery() for _ in requests]
    failures: dict[int, Failure] = {}

    async def call(child: Child, number: int) -> None:
        with pytest.raises(CallFailed) as caught:
            await child.connection.send(
                requests[number],
                method="tools/call",
                delivery=deliveries[number],
                ident=b"%d" % number,
            )
        failures[number] = caught.value.failure

    # The first, the second, and a part of the third.
    size = len(requests[0]) + 1
    async with run(program, str(2 * size + 5)) as child, trio.open_nursery() as nursery:
        for number, delivery in enumerate(deliveries):
            nursery.start_soon(call, child, number)
            await until(lambda d=delivery: d.sent is Sent.YES)  # type: ignore[misc]
        await until(lambda: bool(child.taken))
        os.kill(child.connection.pid or 0, signal.SIGKILL)
    assert {failure.code for failure in failures.values()} == {"channel_closed"}
    assert [failures[n].sent for n in range(4)] == [Sent.YES, Sent.YES, Sent.PARTLY, Sent.PARTLY]
    assert [fate_of(failures[n]) for n in range(4)] == [Fate.UNKNOWN] * 2 + [Fate.NOT_EXECUTED] * 2


@pytest.mark.parametrize(("read", "sent"), [(0, Sent.YES), (-1, Sent.PARTLY)])
async def test_what_was_not_waited_for_counts_as_written(read: int, sent: Sent) -> None:
    program = """
import os, signal, sys
left = int(sys.argv[1])
while left:
    left -= len(os.read(0, left))
print('{"jsonrpc":"2.0","method":"read"}', flush=True)
signal.pause()
"""
    pong = jsonrpc.result(b"7", b"{}")
    size = 2 * (len(pong) + 1) + len(CALL) + 1
    async with run(program, str(size + read)) as child, trio.open_nursery() as nursery:
        delivery = Delivery()

        async def call() -> None:
            with pytest.raises(CallFailed) as caught:
                await child.call(delivery)
            assert caught.value.failure.sent is sent

        for _ in range(2):
            assert child.connection.send_now(pong, lambda _: False)
        nursery.start_soon(call)
        await until(lambda: delivery.sent is Sent.YES)
        assert child.connection.send_now(pong, lambda _: False)  # nobody reads it
        await until(lambda: bool(child.taken))
        os.kill(child.connection.pid or 0, signal.SIGKILL)


async def test_nothing_is_kept_of_what_is_not_waited_for() -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Delivery) for each in gc.get_objects())

    async with run("import sys; sys.stdin.read()") as child:
        before = kept()
        for _ in range(100):
            assert child.connection.send_now(jsonrpc.result(b"7", b"{}"), lambda _: False)
        assert kept() <= before


async def test_what_another_process_may_still_read_is_in_doubt() -> None:
    # It has left the group, and with it the reach of signals.
    program = """
import os, signal
if os.fork():
    print('{"jsonrpc":"2.0","method":"forked"}', flush=True)
    signal.pause()
os.setsid()
print('{"jsonrpc":"2.0","id":"pid","result":%d}' % os.getpid(), flush=True)
signal.pause()
"""
    async with run(program) as child:
        await until(lambda: len(child.taken) == 2)
        survivor = next(int(message.result) for message in child.taken if message.result)
        try:
            async with trio.open_nursery() as nursery:
                delivery = Delivery()

                async def call() -> None:
                    with pytest.raises(CallFailed) as caught:
                        await child.call(delivery)
                    assert caught.value.failure.sent is Sent.YES

                nursery.start_soon(call)
                await until(lambda: delivery.sent is Sent.YES)
                os.kill(child.connection.pid or 0, signal.SIGKILL)
        finally:
            os.kill(survivor, signal.SIGKILL)


async def test_what_was_written_before_the_end_still_counts() -> None:
    program = """
input()
print('{"jsonrpc":"2.0","id":1,"result":"%s"}' % ("x" * 60000), flush=True)
"""
    for _ in range(8):  # whether the end or the answer is noticed first is a matter of chance
        async with run(program) as child, trio.open_nursery() as nursery:
            delivery = Delivery()
            nursery.start_soon(child.call, delivery)
            await until(lambda d=delivery: d.sent is Sent.YES)  # type: ignore[misc]
            # Nothing else happens here meanwhile, and the process is not collected, unless it has
            # been by now.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, child.connection.pid or 0, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        assert len(child.taken[0].result or b"") == 60002


async def test_a_stubborn_process_is_killed_within_seconds() -> None:
    with trio.fail_after(SECONDS):
        async with open_stdio(stubborn=True) as bench:
            bench.nursery.start_soon(bench.answer, {"jsonrpc": "2.0", "method": "n"})
            await bench.peer.receive()
            started = trio.current_time()
            with capture_logs() as logs:
                await bench.connection.close()
            assert 1.9 < trio.current_time() - started < 3.5
            assert bench.peer.is_gone()
    ended = next(line for line in logs if line["event"] == "process_ended")
    assert ended["status"] == -signal.SIGKILL


async def test_a_cancelled_close_does_not_spare_the_process() -> None:
    with trio.fail_after(SECONDS):
        async with open_stdio(stubborn=True) as bench:
            bench.nursery.start_soon(bench.answer, {"jsonrpc": "2.0", "method": "n"})
            await bench.peer.receive()
            with trio.move_on_after(0.1):
                await bench.connection.close()
            assert not bench.peer.is_gone()
            bench.nursery.cancel_scope.cancel()
        assert bench.peer.is_gone()


async def test_the_polite_are_asked_politely() -> None:
    """Closing stdin is the first thing that happens, and enough for most."""
    program = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("told to", file=sys.stderr, flush=True))
input()
print('{"jsonrpc":"2.0","id":1,"result":{}}', flush=True)
sys.stdin.read()
sys.exit(7)
"""
    with capture_logs() as logs:
        async with run(program) as child:
            await child.call()
            await child.connection.close()
    assert [line for line in logs if line["event"] == "server_stderr"] == []
    assert next(line for line in logs if line["event"] == "process_ended")["status"] == 7


async def test_stderr_goes_to_the_log_bounded() -> None:
    program = """
import sys
err = sys.stderr
err.write("first\\r\\n\\n  \\x1b[1mbold\\x1b[0m the-secret-token\\n" + "long" * 2000 + "\\n")
for n in range(500):
    err.write("line %d\\n" % n)
err.write("unfinished")
err.flush()
input()
"""
    with capture_logs() as logs:
        async with run(program, secrets=["the-secret-token", "LANG"]) as child:
            await child.fails()
    lines = [line["line"] for line in logs if line["event"] == "server_stderr"]
    assert lines[0] == "first"
    assert lines[1] == "\ufffd[1mbold\ufffd[0m ***"
    assert lines[2] == "long" * 500
    assert len(lines) == 100
    assert [line["lines"] for line in logs if line["event"] == "server_stderr_dropped"] == [404]


async def test_a_server_that_floods_stderr_is_not_held_up() -> None:
    program = """
import sys
input()
for n in range(3000):
    sys.stderr.write("x" * 1000)
print('{"jsonrpc":"2.0","id":1,"result":{}}', flush=True)
sys.stdin.read()
"""
    async with run(program) as child:
        await child.call()
        assert child.taken[0].result == b"{}"


def peer_of(bench: Bench) -> StdioPeer:
    assert isinstance(bench.peer, StdioPeer)
    return bench.peer


async def test_a_server_that_is_busy_refuses_what_has_not_left_and_lives_on() -> None:
    # 64 KiB are what a pipe holds on Linux, so the first sixteen messages fill it.
    head = b'{"jsonrpc":"2.0","method":"n","params":{"x":"'
    filler = head + b"x" * (4095 - len(head) - 3) + b'"}}'
    with trio.fail_after(SECONDS):
        async with open_stdio(lazy=True, connect_timeout=0.3) as bench:
            for _ in range(16):
                await bench.connection.send(filler, method="n", delivery=Delivery())
            delivery = Delivery()
            with pytest.raises(CallFailed) as caught:
                await bench.call(1, delivery)
            failure = caught.value.failure
            assert (failure.code, failure.phase, failure.sent) == ("busy", Phase.SEND, Sent.NO)
            assert delivery.sent is Sent.NO
            await peer_of(bench).wake()
            for _ in range(16):
                assert (await bench.peer.receive())["method"] == "n"
            bench.nursery.start_soon(bench.call, 2)
            assert (await bench.peer.receive())["id"] == 2


async def test_half_a_message_is_the_end_of_the_channel() -> None:
    with trio.fail_after(SECONDS):
        async with open_stdio(lazy=True, connect_timeout=0.3) as bench:
            delivery = Delivery()
            with pytest.raises(CallFailed) as caught:
                await bench.call(1, delivery, text="x" * 200_000)
            failure = caught.value.failure
            assert (failure.code, failure.phase) == ("channel_closed", Phase.SEND)
            assert failure.sent is delivery.sent is Sent.PARTLY
            assert "could not be written within 0.3 s" in failure.detail
            await bench.connection.close()
            assert bench.peer.is_gone()


@pytest.mark.parametrize(
    "answer",
    [
        b'{"jsonrpc":"2.0","id":1,"result":{"x":"%b"}}',
        b'{"id": 1, "jsonrpc": "2.0", "result": {"x": "%b"}}',
        b'{"result":{"x":"%b","id":2},"jsonrpc":"2.0","id":1}',
        b'{"result":{"x":"%b"},"jsonrpc":"2.0", "id" : 1 } ',
    ],
)
async def test_only_the_call_with_the_huge_answer_fails(answer: bytes) -> None:
    with trio.fail_after(SECONDS):
        async with open_stdio(event_limit=10_000) as bench, trio.open_nursery() as nursery:
            nursery.start_soon(bench.call, 2)
            await bench.peer.receive()
            nursery.start_soon(bench.peer.send, answer % (b"x" * 100_000))
            with pytest.raises(CallFailed) as caught:
                await bench.call(1)
            failure = caught.value.failure
            assert (failure.code, failure.sent) == ("too_large", Sent.YES)
            await bench.peer.receive()
            await bench.peer.send({"jsonrpc": "2.0", "id": 2, "result": {}})
            await bench.wait_taken(1)
            assert bench.results == [(b"2", b"{}")]


@pytest.mark.parametrize(
    "huge",
    [
        b'{"jsonrpc":"2.0","method":"n","params":{"x":"%b","id":1}}',
        b'{"result":{"x":"%b","id":1}}',
        b'{"result":{"id":1,"x":"%b"}}',
        b'{"x":"%b\\"id\\":1}',
    ],
)
async def test_a_huge_message_that_answers_nothing_fails_nothing(huge: bytes) -> None:
    with trio.fail_after(SECONDS):
        async with open_stdio(event_limit=10_000) as bench, trio.open_nursery() as nursery:
            nursery.start_soon(bench.call, 1)
            await bench.peer.receive()
            await bench.peer.send(huge % (b"x" * 100_000), {"jsonrpc": "2.0", "id": 1, "result": 0})
            await bench.wait_taken(1)
            assert bench.results == [(b"1", b"0")]


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_no_descriptor_is_left() -> None:
    before = descriptors()
    for _ in range(3):
        async with run("input()") as child:
            await child.connection.close()
    assert descriptors() <= before


async def test_a_start_that_is_cancelled_half_way_leaves_no_process() -> None:
    before = descriptors()
    threads = trio.to_thread.current_default_thread_limiter()
    connection = Stdio(
        [sys.executable, "-I", "-S", "-c", "input()"],
        env=environment({}, os.environ),
        server="s",
        deliver=lambda *_: None,
    )
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.open, nursery)
            await until(lambda: threads.borrowed_tokens > 0 or connection.pid is not None)
            nursery.cancel_scope.cancel()
    assert connection.pid is not None  # it had got as far as that
    with pytest.raises(ProcessLookupError):
        os.kill(connection.pid, 0)
    assert descriptors() <= before
