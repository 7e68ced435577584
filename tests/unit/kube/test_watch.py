"""Watches: events however they are cut, and every way for them to end."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from kars_router.kube import AnswerError, ApiError, Event, GoneError, Kube, UnreachableError, Watch
from kars_router.kube.resources import CONFIG_MAPS, PODS
from kars_router.kube.watch import LONGEST_LINE
from kars_router.testing.kube import FakeCluster

Manifest = dict[str, Any]


def config_map(name: str, **labels: str) -> Manifest:
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@asynccontextmanager
async def scene(**options: Any) -> AsyncIterator[tuple[FakeCluster, Kube]]:
    cluster = FakeCluster(**options)
    async with cluster.open() as kube:
        yield cluster, kube


def short(event: Event) -> tuple[str, str]:
    return event.type, event.object["metadata"].get("name", "")


async def test_changes_come_as_they_happen(autojump_clock: MockClock) -> None:
    async with scene() as (cluster, kube):
        listing = await kube.list(CONFIG_MAPS)
        found = []
        async with kube.watch(
            CONFIG_MAPS, resource_version=listing.resource_version, seconds=300
        ) as events:
            cluster.put(config_map("a"))
            cluster.put(config_map("a", changed="yes"))
            cluster.remove(CONFIG_MAPS, "a")
            async for event in events:
                found.append(short(event))
                if event.type == "DELETED":
                    break
        assert found == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
        assert cluster.watching == 0
        assert cluster.seen[-1].query == {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": listing.resource_version,
            "timeoutSeconds": "300",
        }


async def test_it_ends_when_the_server_ends_it(autojump_clock: MockClock) -> None:
    async with scene(bookmark_seconds=60) as (_, kube):
        async with kube.watch(PODS, "default", resource_version="3", seconds=150) as events:
            found = [event async for event in events]
        assert [event.type for event in found] == ["BOOKMARK"] * 3
        assert found[-1].resource_version == "3"
        assert trio.current_time() == pytest.approx(150)


async def test_what_ceases_to_be_selected_is_gone(autojump_clock: MockClock) -> None:
    async with scene() as (cluster, kube):
        cluster.put(config_map("a", k="v"))
        version = str(cluster.store.version)
        cluster.put(config_map("b"))
        cluster.put(config_map("a", k="w"))
        cluster.put(config_map("a", k="v"))
        async with kube.watch(
            CONFIG_MAPS, resource_version=version, labels="k=v", seconds=10
        ) as events:
            found = [short(event) async for event in events]
        assert found == [("DELETED", "a"), ("ADDED", "a"), ("BOOKMARK", "")]


async def test_a_forgotten_version_is_gone() -> None:
    async with scene() as (cluster, kube):
        cluster.put(config_map("a"))
        cluster.forget()
        async with kube.watch(CONFIG_MAPS, resource_version="1") as events:
            with pytest.raises(GoneError) as caught:
                await anext(events)
        assert (caught.value.status, caught.value.reason) == (410, "Expired")


async def test_a_watch_that_is_refused_is_refused_at_once() -> None:
    async with scene() as (cluster, kube):
        for status, kind in ((410, GoneError), (429, ApiError)):
            cluster.trouble(status, verb="watch")
            with pytest.raises(kind):
                async with kube.watch(CONFIG_MAPS, resource_version="1"):
                    pytest.fail("there is no watch")


async def test_a_dropped_watch_is_told_from_one_that_ended() -> None:
    async with scene() as (cluster, kube):
        async with kube.watch(CONFIG_MAPS, resource_version="3") as events:
            cluster.put(config_map("a"))
            assert short(await anext(events)) == ("ADDED", "a")
            cluster.drop_watches()
            with pytest.raises(UnreachableError, match="broke off"):
                await anext(events)
        assert cluster.watching == 0


async def test_chaos_breaks_watches_but_loses_no_event() -> None:
    async with scene() as (cluster, kube):
        for number in range(100):
            cluster.put(config_map(f"c{number}"))
        cluster.chaos(Random(7), 0.3)
        seen: list[str] = []
        version, breaks = "3", 0
        while len(seen) < 100:
            try:
                async with kube.watch(CONFIG_MAPS, resource_version=version) as events:
                    async for event in events:
                        seen.append(event.object["metadata"]["name"])
                        version = event.resource_version
                        if len(seen) == 100:
                            break
            except (UnreachableError, ApiError):
                breaks += 1
        assert seen == [f"c{number}" for number in range(100)]
        assert breaks > 3


async def test_leaving_a_silent_watch_closes_it(autojump_clock: MockClock) -> None:
    async with scene(bookmark_seconds=10_000) as (cluster, kube):
        with trio.move_on_after(5):
            async with kube.watch(CONFIG_MAPS, resource_version="3") as events:
                await anext(events)
        assert cluster.watching == 0


async def test_a_watch_that_outlives_its_time_is_given_up(autojump_clock: MockClock) -> None:
    watch = Watch(Silence(), "the server", deadline=trio.current_time() + 330)
    with pytest.raises(UnreachableError, match="did not end a watch when its time was over"):
        await anext(watch)
    assert trio.current_time() == pytest.approx(330)


class Silence:
    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.sleep_forever()
        raise StopAsyncIteration


# --- bytes ----------------------------------------------------------------------------------------


async def read(*chunks: bytes) -> list[Event]:
    async def body() -> AsyncGenerator[bytes, None]:
        for chunk in chunks:
            yield chunk

    async with aclosing(body()) as parts:
        return [event async for event in Watch(parts, "the server", deadline=float("inf"))]


def line(kind: str = "ADDED", **content: Any) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


@given(st.lists(st.integers(min_value=0, max_value=200), max_size=12))
def test_events_may_be_cut_anywhere(cuts: list[int]) -> None:
    text = line(a="ä") + line("DELETED", b="\n") + line("BOOKMARK", metadata={})
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[start:end] for start, end in itertools.pairwise(places)]
    found = trio.run(read, *chunks)
    assert [(event.type, event.object) for event in found] == [
        ("ADDED", {"a": "ä"}),
        ("DELETED", {"b": "\n"}),
        ("BOOKMARK", {"metadata": {}}),
    ]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (b"<html>\n", AnswerError, "no JSON"),
        (b"\xff\n", AnswerError, "no JSON"),
        (b"[" * 100_000 + b"\n", AnswerError, "no JSON"),
        (b"[]\n", AnswerError, "none of a watch"),
        (b'{"type": "ADDED"}\n', AnswerError, "none of a watch"),
        (b'{"type": "ADDED", "object": 3}\n', AnswerError, "none of a watch"),
        (b'{"type": "MERGED", "object": {}}\n', AnswerError, "none of a watch"),
        (b'{"type": ["ADDED"], "object": {}}\n', AnswerError, "none of a watch"),
        (line()[:-5], UnreachableError, "inside an event"),
        (line("ERROR", code=410, message="too old"), GoneError, "too old"),
        (line("ERROR", code=500, message="etcd"), ApiError, "etcd"),
        (b'{"type": "ERROR", "object": null}\n', ApiError, "status 500"),
    ],
)
async def test_what_is_no_event_is_told(text: bytes, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        await read(text)
    assert type(caught.value) is kind


async def test_an_event_may_be_large_but_not_endless() -> None:
    assert len(await read(line(a="x" * 2_000_000))) == 1
    with pytest.raises(AnswerError, match="more than 16 MiB"):
        await read(*[b"x" * 1_000_000] * (LONGEST_LINE // 1_000_000 + 1), b"\n")
    # Even one that never ends is not kept.
    async with aclosing(_endless()) as parts:
        with pytest.raises(AnswerError, match="more than 16 MiB"):
            await anext(Watch(parts, "the server", deadline=float("inf")))


async def _endless() -> AsyncGenerator[bytes, None]:
    while True:
        await trio.lowlevel.checkpoint()
        yield b"x" * 1_000_000


@pytest.mark.parametrize("content", [{}, {"metadata": None}, {"metadata": {"resourceVersion": 3}}])
def test_an_event_need_not_have_a_version(content: Manifest) -> None:
    assert Event("ADDED", content).resource_version == ""
