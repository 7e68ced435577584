"""Events: told once, counted when they repeat, and never in anybody's way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import pytest
import trio
from attrs import define
from kars_operator.events import Recorder, Restraint
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.kube.resources import EVENTS
from kars_router.testing.kube import FakeCluster

START = datetime(2026, 1, 1, tzinfo=UTC)


def sandbox(name: str = "agent", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "KarsSandbox",
        "metadata": {
            "namespace": "default",
            "name": name,
            "uid": f"uid of {name}",
            "resourceVersion": "7",
            **metadata,
        },
    }


@define
class Rig:
    cluster: FakeCluster
    recorder: Recorder

    def say(self, note: str = "no server x", name: str = "agent") -> None:
        self.recorder.event(sandbox(name), "Warning", "ServerMissing", note)

    def told(self) -> list[dict[str, Any]]:
        return self.cluster.all(EVENTS)

    def counts(self) -> list[int]:
        return [each.get("series", {}).get("count", 1) for each in self.told()]

    def requests(self) -> int:
        return len(self.cluster.seen)


@asynccontextmanager
async def open_rig(restraint: Restraint | None = None) -> AsyncIterator[Rig]:
    cluster = FakeCluster()
    began = trio.current_time()

    def now() -> datetime:
        return START + timedelta(seconds=trio.current_time() - began)

    async with cluster.open() as kube, trio.open_nursery() as nursery:
        recorder = Recorder(
            kube, "operator-1", restraint=restraint, random=Random(1).random, now=now
        )
        await nursery.start(recorder.run)
        yield Rig(cluster, recorder)
        nursery.cancel_scope.cancel()


async def test_an_event_says_what_happened_to_what(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.recorder.event(
            sandbox(), "Normal", "Created", "the Deployment was made", action="Create"
        )
        await trio.sleep(1)
        (told,) = rig.told()
        assert told["regarding"] == {
            "apiVersion": "kars.azure.com/v1alpha1",
            "kind": "KarsSandbox",
            "namespace": "default",
            "name": "agent",
            "uid": "uid of agent",
            "resourceVersion": "7",
        }
        said = {key: told[key] for key in ("type", "reason", "note", "action")}
        assert said == {
            "type": "Normal",
            "reason": "Created",
            "note": "the Deployment was made",
            "action": "Create",
        }
        assert told["reportingController"] == "kars.azure.com/operator"
        assert told["reportingInstance"] == "operator-1"
        assert told["eventTime"] == "2026-01-01T00:00:00.000000Z"
        assert told["metadata"]["name"].startswith("agent.")
        assert "series" not in told
        assert rig.recorder.sent == 1


async def test_repeats_are_a_series_that_is_told_from_time_to_time(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        for _ in range(60):  # ten minutes
            rig.say()
            await trio.sleep(10)
        assert rig.counts()[0] >= 30
        assert rig.requests() <= 5
        await trio.sleep(1000)
        # At its end the whole count, and when it was last.
        assert rig.counts() == [60]
        (told,) = rig.told()
        assert told["series"]["lastObservedTime"] == "2026-01-01T00:09:50.000000Z"
        assert told["eventTime"] == "2026-01-01T00:00:00.000000Z"
        assert rig.requests() <= 6
        assert not rig.recorder._series
        # What comes after a long silence is news.
        rig.say()
        await trio.sleep(1)
        assert sorted(rig.counts()) == [1, 60]


async def test_that_something_repeats_is_told_at_once(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.say()
        await trio.sleep(5)
        rig.say()
        await trio.sleep(5)
        assert rig.counts() == [2]


async def test_repeats_before_the_first_was_sent_are_told_with_it(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        for _ in range(100):
            rig.say()
        await trio.sleep(5)
        assert rig.counts() == [100]
        assert rig.requests() == 1


async def test_repeats_while_it_is_being_sent_are_told_later(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.cluster.trouble(verb="create", seconds=10)
        rig.say()
        await trio.sleep(5)
        for _ in range(3):
            rig.say()
        await trio.sleep(1000)
        assert rig.counts() == [4]


async def test_other_objects_reasons_and_notes_are_other_events(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.say("x")
        rig.say("y")
        rig.say("x", name="other")
        rig.recorder.event(sandbox(uid="another of this name"), "Warning", "ServerMissing", "x")
        rig.recorder.event(sandbox(), "Normal", "ServerMissing", "x")
        rig.recorder.event(sandbox(), "Warning", "Other", "x")
        rig.recorder.event(sandbox(), "Warning", "Other", "x", action="Delete")
        # The version of the object makes no difference.
        rig.recorder.event(sandbox(resourceVersion="8"), "Warning", "Other", "x")
        await trio.sleep(5)
        assert sorted(rig.counts()) == [1, 1, 1, 1, 1, 1, 2]


async def test_one_object_gets_only_so_many_events_and_others_are_not_held_up(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(Restraint(burst=10, refill=60)) as rig:
        for number in range(100):
            rig.say(f"note {number}")
        rig.say("once", name="other")
        await trio.sleep(5)
        assert len(rig.told()) == 11
        assert rig.recorder.dropped == 90
        await trio.sleep(180)
        for number in range(100, 200):
            rig.say(f"note {number}")
        await trio.sleep(5)
        assert len(rig.told()) == 14


async def test_what_has_an_event_already_is_counted_without_an_allowance(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(Restraint(burst=1, refill=1e9)) as rig:
        rig.say("a")
        rig.say("b")
        rig.say("a")
        await trio.sleep(5)
        assert rig.counts() == [2]


async def test_a_queue_that_is_full_drops_what_comes(autojump_clock: MockClock) -> None:
    async with open_rig(Restraint(queue=5)) as rig:
        rig.cluster.stop()
        for number in range(20):
            rig.say("x", name=f"agent{number}")  # never waits: there is no checkpoint here
        assert rig.recorder.dropped == 15
        rig.cluster.start()
        await trio.sleep(60)
        assert len(rig.told()) == 5


async def test_a_server_that_is_down_is_tried_a_few_times(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.cluster.stop()
        rig.say()
        await trio.sleep(3)
        rig.cluster.start()
        await trio.sleep(10)
        assert rig.counts() == [1]
        rig.cluster.stop()
        rig.say("y")
        await trio.sleep(100)
        rig.cluster.start()
        await trio.sleep(100)
        assert rig.recorder.failed == 1
        assert len(rig.told()) == 1
        # That it happened is told when it happens again.
        rig.say("y")
        await trio.sleep(5)
        assert sorted(rig.counts()) == [1, 2]


@pytest.mark.parametrize("status", [403, 404, 422])
async def test_a_refusal_is_final_and_holds_nothing_up(
    autojump_clock: MockClock, status: int
) -> None:
    # Such as in a namespace that is being deleted.
    async with open_rig() as rig:
        rig.cluster.trouble(status, verb="create", times=2)
        for _ in range(100):
            rig.say()
            await wait_all_tasks_blocked()
        rig.say("y")
        await trio.sleep(5)
        assert rig.requests() == 3
        assert rig.recorder.failed == 2
        assert len(rig.told()) == 1


async def test_an_answer_that_was_lost_makes_no_second_event(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.cluster.trouble(verb="create", error=httpx.ReadError, executed=True)
        rig.say()
        await trio.sleep(30)
        rig.say()
        await trio.sleep(30)
        assert rig.counts() == [2]
        assert rig.recorder.failed == 0


async def test_an_event_that_the_server_has_dropped_is_made_again(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.say()
        await trio.sleep(5)
        (told,) = rig.told()
        rig.cluster.remove(EVENTS, told["metadata"]["name"])
        rig.say()
        await trio.sleep(5)
        assert rig.counts() == [2]


async def test_the_delay_that_the_server_asks_for_is_kept(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.cluster.trouble(429, verb="create", retry_after=20)
        rig.say()
        await trio.sleep(19)
        assert rig.told() == []
        await trio.sleep(10)
        assert rig.counts() == [1]


async def test_what_an_event_cannot_hold_is_cut(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.recorder.event(sandbox("x" * 250), "Warning", "Long", "é" * 2000)
        rig.recorder.event(sandbox("system:Odd_Name:"), "Warning", "Odd", "\ud800 is no character")
        rig.recorder.event({}, "Warning", "Unknown", "")
        await trio.sleep(5)
        for told in rig.told():
            assert len(told["note"].encode()) <= 1024
            assert len(told["metadata"]["name"]) <= 253
        notes = [told["note"] for told in rig.told()]
        assert max(len(each) for each in notes) > 500
        assert {told["metadata"]["name"].partition(".")[0] for told in rig.told()} == {
            "x" * 230,
            "system-odd-name",
            "object",
        }


async def test_what_is_in_no_namespace_has_its_events_in_the_default_one(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}
        rig.recorder.event(namespace, "Normal", "Seen", "hello")
        await trio.sleep(5)
        (told,) = rig.told()
        assert told["metadata"]["namespace"] == "default"
        assert "namespace" not in told["regarding"]


async def test_what_is_remembered_is_bounded(autojump_clock: MockClock) -> None:
    async with open_rig(Restraint(series=50)) as rig:
        for number in range(500):
            rig.say("x", name=f"agent{number}")
        await trio.sleep(30)
        assert len(rig.told()) == 500
        assert len(rig.recorder._series) <= 50
        assert len(rig.recorder._allowances) <= 50


@pytest.mark.parametrize("seed", range(10))
async def test_after_any_chaos_every_series_has_its_count(
    autojump_clock: MockClock, seed: int
) -> None:
    chance = Random(seed)
    async with open_rig() as rig:
        rig.cluster.chaos(chance, 0.3)
        said = [0] * 5
        for _ in range(200):
            number = chance.randrange(5)
            said[number] += 1
            rig.say("x", name=f"agent{number}")
            await trio.sleep(chance.random() * 20)
        rig.cluster.calm()
        for number in range(5):  # what has failed in the end is told with the next
            said[number] += 1
            rig.say("x", name=f"agent{number}")
        await trio.sleep(1500)
        counts: dict[str, int] = {}
        for told in rig.told():
            counts[told["regarding"]["name"]] = told["series"]["count"]
        assert counts == {f"agent{number}": said[number] for number in range(5)}
