from __future__ import annotations

import trio
from attrs import define, field
from trio.testing import MockClock

from kars_router.front.replay import KEPT_SECONDS, EventLog, EventStream, Reader
from kars_router.telemetry import Metrics

MIB = 1 << 20


@define
class Counted:
    """A log, and what it counts."""

    metrics: Metrics = field(factory=Metrics)
    lost: list[str] = field(factory=list)
    log: EventLog = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.log = EventLog(self.metrics)

    def put(self, stream: EventStream, name: str, data: bytes = b"?") -> None:
        """Puts an event that somebody would miss."""
        stream.put(data, on_lost=lambda: self.lost.append(name))

    def counts(self) -> tuple[float | None, float | None]:
        """How many were given up before and after they were read."""
        read = self.metrics.registry.get_sample_value
        return (
            read("kars_agent_notifications_dropped_total"),
            read("kars_agent_replays_dropped_total"),
        )


def taken(stream: EventStream, reader: Reader) -> list[bytes]:
    """Everything that a reader gets now."""
    found = []
    while (event := stream.take(reader)) is not None:
        found.append(event.data)
    return found


def opened(log: EventLog, *, standing: bool = False) -> tuple[EventStream, Reader]:
    stream = log.open(standing=standing)
    return stream, stream.attach()


async def test_a_reader_that_comes_back_gets_what_came_after(autojump_clock: MockClock) -> None:
    log = EventLog(Metrics())
    stream, reader = opened(log)
    for data in (b"1", b"2", b"3"):
        stream.put(data)
    events = [stream.take(reader) for _ in range(2)]
    stream.detach(reader)
    stream.put(b"4")
    for event, rest in zip(events, ([b"2", b"3", b"4"], [b"3", b"4"]), strict=True):
        assert event is not None
        assert log.find(event.ident) == (stream, event.number)
        assert taken(stream, stream.attach(event.number)) == rest
    assert taken(stream, stream.attach(0)) == [b"1", b"2", b"3", b"4"]


async def test_an_id_is_known_to_its_own_log_only(autojump_clock: MockClock) -> None:
    log, other = EventLog(Metrics()), EventLog(Metrics())
    stream, reader = opened(log)
    stream.put(b"1")
    event = stream.take(reader)
    assert event is not None
    assert log.find(event.ident) is not None
    name, key, _ = event.ident.split("-")
    for ident in (
        "",
        "x",
        other.open().ident(0),
        f"{other.name}-{key}-1",
        f"{name}-{key}-2",  # not yet
        f"{name}-{key}--1",
        f"{name}-{key}-1-1",
        f"{name}-{key}-²",
        f"{name}-{key}-{'1' * 5000}",
        f"{name}-99-1",
        f"{name}-{key}",
        log.waiting.ident(0),  # nobody was ever told
    ):
        assert log.find(ident) is None, ident


async def test_a_new_reader_takes_the_stream_over(autojump_clock: MockClock) -> None:
    stream, old = opened(EventLog(Metrics()))
    stream.put(b"1")
    assert taken(stream, old) == [b"1"]
    new = stream.attach(0)
    assert old.closed
    stream.put(b"2")
    assert taken(stream, old) == []
    stream.detach(old)  # which does not concern it any more
    assert stream.reader is new
    assert taken(stream, new) == [b"1", b"2"]


async def test_a_stream_whose_ids_nobody_knows_ends_with_its_reader(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    counted.put(stream, "question")
    stream.detach(reader)
    assert (stream.closed, stream.audible, counted.lost) == (True, False, ["question"])
    counted.put(stream, "late")
    assert counted.lost == ["question", "late"]


async def test_a_stream_can_be_heard_until_its_reader_was_away_too_long(
    autojump_clock: MockClock,
) -> None:
    stream, reader = opened(EventLog(Metrics()))
    stream.put(b"1")
    stream.take(reader)
    await trio.sleep(KEPT_SECONDS * 2)
    heard = [stream.audible]
    stream.detach(reader)
    for seconds in (KEPT_SECONDS, 1):
        await trio.sleep(seconds)
        heard.append(stream.audible)
    stream.attach(0)
    heard.append(stream.audible)
    stream.end()
    heard.append(stream.audible)
    assert heard == [True, True, False, True, False]


async def test_what_waits_for_a_get_stream_goes_to_the_next_one(autojump_clock: MockClock) -> None:
    log = EventLog(Metrics())
    first, reader = opened(log, standing=True)
    for data in (b"1", b"2"):
        first.put(data)
    assert first.take(reader) is not None
    first.detach(reader)
    log.waiting.put(b"3")
    second, reader = opened(log, standing=True)
    second.take_over(log.waiting)
    assert taken(second, reader) == [b"2", b"3"]
    # What the first one carried is not for the second one to repeat.
    assert taken(first, first.attach(0)) == [b"1"]


async def test_the_same_message_waits_once_only_if_that_is_wanted(
    autojump_clock: MockClock,
) -> None:
    stream, reader = opened(EventLog(Metrics()))
    for _ in range(2):
        stream.put(b"a", once=True)
        stream.put(b"b")
    assert taken(stream, reader) == [b"a", b"b", b"b"]
    stream.put(b"a", once=True)
    assert taken(stream, reader) == [b"a"]


async def test_of_too_many_events_the_oldest_are_given_up(autojump_clock: MockClock) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    for number in range(520):
        stream.put(b"%d" % number)
        if number == 4:
            assert len(taken(stream, reader)) == 5
    assert len(counted.log) == 512
    assert counted.counts() == (3, 5)
    assert taken(stream, reader) == [b"%d" % number for number in range(8, 520)]


async def test_of_too_many_bytes_the_oldest_are_given_up_but_not_the_newest(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    other, _ = opened(counted.log)
    other.put(b"x" * MIB)
    for _ in range(4):
        stream.put(b"y" * MIB)
    assert len(counted.log) == 4
    stream.put(b"z" * 5 * MIB)
    assert [data[:1] for data in taken(stream, reader)] == [b"z"]
    assert counted.counts() == (5, 0)


async def test_what_somebody_waits_for_outlives_notifications_and_counts_when_nobody_reads(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    for number in range(10):
        counted.put(stream, f"{number}", b"x" * MIB)
    assert len(taken(stream, reader)) == 10
    for _ in range(600):
        stream.put(b"notification")
    assert (len(counted.log), counted.lost) == (512, [])
    stream.detach(reader)  # now 10 MiB wait for somebody who may not come
    assert counted.lost == ["0", "1", "2", "3", "4", "5"]
    assert len(taken(stream, stream.attach(0))) == 4


async def test_what_somebody_reads_again_counts_no_more(autojump_clock: MockClock) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    counted.put(stream, "answer", b"x" * 4 * MIB)
    stream.take(reader)
    stream.detach(reader)
    assert len(counted.log) == 1
    stream.attach(0)
    assert len(counted.log) == 0
    other, gone = opened(counted.log)
    counted.put(other, "other", b"x" * 4 * MIB)
    other.take(gone)
    other.detach(gone)
    assert counted.lost == []


async def test_a_flood_takes_no_place_from_what_somebody_waits_for(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    counted.put(stream, "answer")
    stream.take(reader)
    stream.detach(reader)
    flooded, _ = opened(counted.log)
    for _ in range(2000):
        flooded.put(b"notification")
    assert counted.lost == []
    for number in range(600):
        counted.put(stream, f"{number}")
    assert counted.lost == ["answer", *(f"{n}" for n in range(88))]


async def test_what_was_written_to_the_end_is_kept_and_missed_no_more(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    counted.put(stream, "question")
    stream.put(b"1")
    counted.put(stream, "answer", b"2")
    stream.end()
    assert len(taken(stream, reader)) == 3
    stream.complete()
    stream.detach(reader)
    # A question cannot be answered after the request that it belongs to.
    assert (counted.lost, len(counted.log)) == (["question"], 2)
    again = stream.attach(0)
    assert taken(stream, again) == [b"1", b"2"]
    stream.complete()
    stream.detach(again)
    assert counted.log.find(stream.ident(2)) == (stream, 2)
    assert counted.log.find(stream.ident(3)) is None
    assert (stream.closed, len(counted.log)) == (True, 0)
    assert (counted.lost, counted.counts()) == (["question"], (0, 0))


async def test_large_answers_that_were_written_make_room_for_what_was_not(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    counted.log.waiting.put(b"waits")
    streams = []
    for size in (1, 3, 1, 5):
        stream, reader = opened(counted.log)
        counted.put(stream, "answer", b"x" * (size * MIB - MIB // 4))
        stream.end()
        taken(stream, reader)
        stream.complete()
        stream.detach(reader)
        streams.append(stream)
        if size == 3:
            assert [one.closed for one in streams] == [False, False]
    # The last one alone is too much.
    assert [one.closed for one in streams] == [True] * 4
    assert len(counted.log) == 1
    assert (counted.lost, counted.counts()) == ([], (0, 4))


async def test_a_small_answer_that_was_written_outlives_older_notifications(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    for number in range(512):
        counted.log.waiting.put(b"%d" % number)
    stream, reader = opened(counted.log)
    counted.put(stream, "answer")
    stream.end()
    taken(stream, reader)
    stream.complete()
    stream.detach(reader)
    assert (stream.closed, len(counted.log), counted.counts()) == (False, 512, (1, 0))


async def test_of_many_answers_that_were_written_the_oldest_are_given_up(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    streams = []
    for _ in range(520):
        stream, reader = opened(counted.log)
        counted.put(stream, "answer")
        stream.end()
        taken(stream, reader)
        stream.complete()
        stream.detach(reader)
        streams.append(stream)
    assert [one.closed for one in streams] == [True] * 8 + [False] * 512
    assert counted.lost == []


async def test_what_was_read_is_forgotten_after_a_while(autojump_clock: MockClock) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    stream.put(b"read")
    stream.take(reader)
    stream.put(b"waits")
    await trio.sleep(KEPT_SECONDS + 1)
    counted.log.expire()
    assert len(counted.log) == 1
    assert taken(stream, reader) == [b"waits"]
    assert counted.counts() == (0, 0)


async def test_what_somebody_waits_for_is_given_up_when_the_agent_stays_away(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    stream, reader = opened(counted.log)
    counted.put(stream, "question")
    stream.take(reader)
    await trio.sleep(KEPT_SECONDS * 2)
    counted.log.expire()
    assert counted.lost == []
    stream.detach(reader)
    await trio.sleep(KEPT_SECONDS)
    counted.log.expire()
    assert counted.lost == []
    await trio.sleep(1)
    counted.log.expire()
    assert counted.lost == ["question"]
    assert not stream.closed  # its request may still be answered
    stream.end()
    assert stream.closed


async def test_a_stream_that_holds_nothing_is_forgotten(autojump_clock: MockClock) -> None:
    log = EventLog(Metrics())
    for _ in range(3):
        stream, reader = opened(log, standing=True)
        stream.told = True
        stream.detach(reader)
        assert log.find(stream.ident(0)) is None
    ended, reader = opened(log)
    event = ended.put(b"1")
    assert ended.take(reader) is event
    ended.end()
    assert log.find(ended.ident(0)) is not None  # its reader has yet to learn of the end
    ended.detach(reader)
    assert log.find(ended.ident(0)) is not None
    event.discard()
    assert log.find(ended.ident(0)) is None


async def test_a_stream_that_ended_without_an_answer_is_forgotten_after_a_while(
    autojump_clock: MockClock,
) -> None:
    log = EventLog(Metrics())
    stream, reader = opened(log)
    for data in (b"1", b"2"):
        stream.put(data)
    stream.take(reader)
    stream.detach(reader)
    stream.end()
    await trio.sleep(KEPT_SECONDS)
    log.expire()
    assert log.find(stream.ident(0)) is not None
    await trio.sleep(1)
    log.expire()
    assert log.find(stream.ident(0)) is None
    assert len(log) == 0


async def test_a_log_that_closes_leaves_answers_to_those_who_read(
    autojump_clock: MockClock,
) -> None:
    counted = Counted()
    log = counted.log
    read, reader = opened(log)
    left, gone = opened(log)
    left.told = True
    left.detach(gone)
    standing, listener = opened(log, standing=True)
    counted.put(left, "left")
    log.close()
    assert (left.closed, standing.ended, read.ended) == (True, True, False)
    assert counted.lost == ["left"]
    read.put(b"answer")
    assert taken(read, reader) == [b"answer"]
    standing.detach(listener)  # although nothing waits for a next stream any more
    assert log.waiting.closed


async def test_a_reader_waits_until_there_is_something(autojump_clock: MockClock) -> None:
    stream, reader = opened(EventLog(Metrics()))
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.wait)
        await trio.sleep(1)
        stream.put(b"1")
    assert taken(stream, reader) == [b"1"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.wait)
        await trio.sleep(1)
        stream.attach()
    assert trio.current_time() - started == 2
    await reader.wait()  # which is over for good


async def test_a_stream_of_long_standing_is_searched_at_once(autojump_clock: MockClock) -> None:
    log = EventLog(Metrics())
    stream, reader = opened(log)
    stream.put(b"question", on_lost=lambda: None)
    for number in range(3000):
        stream.put(b"%d" % number)
    assert taken(stream, reader)[:2] == [b"question", b"2488"]
    assert taken(stream, stream.attach(0))[:2] == [b"question", b"2488"]
