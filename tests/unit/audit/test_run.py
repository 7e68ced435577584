"""What happens in time: sinks, checkpoints, the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.audit.audit_kit import (
    ALLOW,
    DONE,
    Clock,
    call,
    checked,
    events,
    lines,
    opened,
    rows,
    whole_call,
)

from kars_router.audit import Journal, JournalError, sinks
from kars_router.audit.storage import Storage
from kars_router.builtins.stdout_sink import Plugin, StdoutSink
from kars_router.config.schema import Audit, Fsync
from kars_router.errors import PluginError
from kars_router.plugins import Plugins
from kars_router.telemetry import Metrics


@define
class Sink:
    """Takes records; waits, or fails, when told to."""

    records: list[Mapping[str, Any]] = field(factory=list)
    gate: trio.Event | None = None
    error: Exception | None = None
    closed: int = 0
    hangs_at_close: bool = False

    async def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.records.extend(records)

    async def aclose(self) -> None:
        self.closed += 1
        if self.hangs_at_close:
            await trio.sleep_forever()

    def events(self) -> list[str]:
        return [str(record["event"]) for record in self.records]


def metered(directory: Path) -> tuple[Journal, Metrics]:
    metrics = Metrics()
    settings = Audit(path=directory / "audit.jsonl", fsync=Fsync.NEVER)
    return Journal.open(settings, state=directory, metrics=metrics, clock=Clock()), metrics


def dropped(metrics: Metrics, sink: str) -> float:
    return metrics.registry.get_sample_value("kars_audit_sink_dropped_total", {"sink": sink}) or 0


async def test_a_sink_gets_every_record_as_it_stands(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    journal, sink = opened(tmp_path), Sink()
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [("sink", sink)])
        whole_call(journal, "c1")
        await wait_all_tasks_blocked()
        # What was written before it ran is there as well: an earlier call's fate may be among it.
        assert sink.records == rows(tmp_path)
        assert sink.events()[:2] == ["opened", "checkpoint"]
        journal.note("last")
        nursery.cancel_scope.cancel()
    assert sink.closed == 1
    assert sink.records == rows(tmp_path)
    # Signed before the sinks are closed, so that a copy of the chain ends signed.
    assert sink.events()[-2:] == ["note", "checkpoint"]
    journal.close()
    assert checked(tmp_path).fault is None


async def test_a_slow_sink_loses_its_oldest_records_and_nobody_waits(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "QUEUE", 10)
    journal, metrics = metered(tmp_path)
    slow, quick = Sink(gate=trio.Event()), Sink()
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [("slow", slow), ("quick", quick)])
        await wait_all_tasks_blocked()
        for number in range(25):
            journal.note(f"n{number}")
            await wait_all_tasks_blocked()
        assert [record.get("note") for record in quick.records][-1] == "n24"
        assert dropped(metrics, "slow") == 15
        assert slow.gate is not None
        slow.gate.set()
        await wait_all_tasks_blocked()
        assert slow.events()[:2] == ["opened", "checkpoint"]
        assert [record["note"] for record in slow.records[2:]] == [f"n{n}" for n in range(15, 25)]
        assert dropped(metrics, "quick") == 0
        nursery.cancel_scope.cancel()
    journal.close()


async def test_a_sink_that_fails_loses_its_own_records_only(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, metrics = metered(tmp_path)
    bad, good = Sink(error=RuntimeError("no")), Sink()
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [("bad", bad), ("good", good)])
        for number in range(3):
            journal.note(f"n{number}")
            await wait_all_tasks_blocked()
        assert dropped(metrics, "bad") == 5
        assert len(good.records) == 5
        bad.error = None
        journal.note("better")
        await wait_all_tasks_blocked()
        assert [record["note"] for record in bad.records] == ["better"]
        nursery.cancel_scope.cancel()
    # One line for a row of failures.
    assert capsys.readouterr().out.count("audit_sink_failed") == 1
    journal.close()


async def test_a_record_that_cannot_be_decoded_costs_nobody_the_router(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    journal, metrics = metered(tmp_path)
    sink = Sink()
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [("sink", sink)])
        await wait_all_tasks_blocked()
        # Deeper than any decoder goes; what makes records does not let this happen.
        deep = msgspec.Raw(b"[" * 5000 + b"]" * 5000)
        journal._pass_on(msgspec.json.encode({"event": "note", "fields": deep}))
        await wait_all_tasks_blocked()
        assert dropped(metrics, "sink") == 1
        journal.note("after")
        await wait_all_tasks_blocked()
        assert sink.records[-1]["note"] == "after"
        nursery.cancel_scope.cancel()
    journal.close()


async def test_a_sink_that_hangs_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    journal, metrics = metered(tmp_path)
    stuck = Sink(gate=trio.Event())
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [("stuck", stuck)])
        await trio.sleep(sinks.WRITE_SECONDS + 1)
        assert dropped(metrics, "stuck") == 2
        nursery.cancel_scope.cancel()
    journal.close()


async def test_the_end_takes_no_longer_than_two_seconds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    journal, metrics = metered(tmp_path)
    stuck = [Sink(gate=trio.Event(), hangs_at_close=True) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [(f"s{n}", sink) for n, sink in enumerate(stuck)])
        await wait_all_tasks_blocked()
        journal.note("something")
        begun = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - begun == pytest.approx(2)
    assert [sink.closed for sink in stuck] == [1, 1, 1]
    assert dropped(metrics, "s0") == len(lines(tmp_path))
    journal.close()


async def test_the_chain_is_signed_in_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    journal = opened(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [])
        journal.note("one")
        await trio.sleep(59)
        assert events(tmp_path)[-1] == "note"
        await trio.sleep(2)
        assert events(tmp_path)[-1] == "checkpoint"
        count = len(events(tmp_path))
        await trio.sleep(600)
        assert len(events(tmp_path)) == count
        nursery.cancel_scope.cancel()
    journal.close()


async def test_health_comes_back_without_a_call(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Storage, __: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = opened(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [])
        journal.accepted(call(), ALLOW)
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "append", refuse)
            journal.ended("c1", DONE)
            await trio.sleep(30)
            assert journal.error == "No space left on device"
        await trio.sleep(1.1)
        assert journal.healthy
        assert events(tmp_path)[-2:] == ["ended", "resumed"]
        nursery.cancel_scope.cancel()
    journal.close()


async def test_the_disk_is_asked_when_there_is_something_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", forced.append)
    journal = opened(tmp_path, fsync=Fsync.INTERVAL, fsync_interval=0.01)
    forced.clear()

    async def until(count: int) -> None:
        with trio.fail_after(5):
            while len(forced) < count:  # noqa: ASYNC110 - nothing says when the disk was asked
                await trio.sleep(0.002)

    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run, [])
        await until(1)
        journal.note("something")
        await until(2)
        nursery.cancel_scope.cancel()
    journal.close()


async def test_a_disk_that_fails_is_noticed_without_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(tmp_path, fsync=Fsync.INTERVAL, fsync_interval=0.01)
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse)
            await nursery.start(journal.run, [])
            with trio.fail_after(5):
                while not journal.error:  # noqa: ASYNC110 - nothing says when the disk was asked
                    await trio.sleep(0.002)
            assert journal.error == "Input/output error"
            with pytest.raises(JournalError):
                journal.accepted(call(), ALLOW)
        journal.accepted(call("c2"), ALLOW)
        assert journal.healthy
        nursery.cancel_scope.cancel()
    journal.close()


@pytest.mark.parametrize(("fsync", "times"), [(Fsync.ALWAYS, 3), (Fsync.NEVER, 0)])
def test_each_record_or_none_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, times: int
) -> None:
    journal = opened(tmp_path, fsync=fsync)
    forced: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", forced.append)
        whole_call(journal, "c1")
    assert len(forced) == times
    journal.close()


async def test_the_stdout_sink_writes_json_lines() -> None:
    out, into = os.pipe()
    sink = StdoutSink(into)
    await sink.write([{"seq": 1, "event": "opened"}, {"seq": 2, "event": "closed"}])
    await sink.aclose()
    os.close(into)
    written = os.read(out, 1000)
    os.close(out)
    assert [msgspec.json.decode(line) for line in written.splitlines()] == [
        {"seq": 1, "event": "opened"},
        {"seq": 2, "event": "closed"},
    ]


async def test_the_stdout_sink_does_not_stop_the_router_when_nobody_reads() -> None:
    out, into = os.pipe()
    sink = StdoutSink(into)
    try:
        with trio.move_on_after(0.05) as scope:
            await sink.write([{"x": "y" * 1_000_000}])
        assert scope.cancelled_caught
        with pytest.raises(BlockingIOError):
            await sink.write([{"x": 1}])
    finally:
        os.close(out)
        # The thread ends with the pipe's other side.


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, 0), ({"enabled": False}, 0), ({"enabled": True}, 1)]
)
def test_the_stdout_sink_is_off_unless_it_is_wanted(
    options: dict[str, Any], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        plugin = Plugin()
        plugin.kars_configure(options)
        host = Plugins()
        host.register(plugin, "stdout-sink")
        assert [name for name, _ in host.audit_sinks()] == ["stdout-sink"] * wanted


@pytest.mark.parametrize("options", [{"enabled": "yes"}, {"enable": True}])
def test_an_option_that_the_stdout_sink_does_not_know(options: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="enabled"):
        Plugin().kars_configure(options)
