"""Leader election: at most one leader at any time, and one again as soon as that is safe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import pytest
import structlog
import trio
from attrs import define, field
from kars_operator.lease import Election, Term, make_identity
from trio.testing import MockClock

from kars_router.kube import open_kube
from kars_router.kube.resources import LEASES
from kars_router.testing.kube import FakeCluster

NAME = "kars-operator"
SPACE = "default"
# As close as may be: there is no room for a moment that is counted wrongly.
CLOSE = Term(duration=11, renewal=10.5, retry=2)


@define
class Watchman:
    """Knows who leads at every moment, and does not let there be two."""

    leading: set[str] = field(factory=set)
    began: dict[str, float] = field(factory=dict)
    terms: list[tuple[str, float, float]] = field(factory=list)

    @asynccontextmanager
    async def leads(self, who: str) -> AsyncIterator[None]:
        assert not self.leading, f"{who} and {self.leading} lead at the same time"
        self.leading.add(who)
        self.began[who] = trio.current_time()
        try:
            yield
        finally:
            self.leading.remove(who)
            self.terms.append((who, self.began[who], trio.current_time()))

    def work(self, who: str, seconds: float = float("inf")) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            async with self.leads(who):
                await trio.sleep(seconds)

        return work


class Line(httpx.AsyncBaseTransport):
    """A candidate's own line to the cluster, which can be cut."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.cut = False
        self.deaf = False  # requests arrive, answers do not
        self.held = 0.0  # requests arrive so much later
        self.late = 0.0  # answers do

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.cut:
            await trio.sleep_forever()
        if self.held:
            await trio.sleep(self.held)
        response = await self.cluster.handle_async_request(request)
        await trio.sleep(float("inf") if self.deaf else self.late)
        return response


@define
class Candidate:
    name: str
    election: Election
    line: Line
    scope: trio.CancelScope


@define
class Rig:
    cluster: FakeCluster
    watchman: Watchman
    nursery: trio.Nursery
    chance: Random

    async def stand(
        self,
        name: str,
        work: Callable[[], Awaitable[None]] | None = None,
        *,
        term: Term | None = None,
        clock_error: float = 0.0,
        late: float = 0.0,
    ) -> Candidate:
        """A candidate that starts now."""
        line, scope = Line(self.cluster), trio.CancelScope()
        line.late = late
        ready = trio.Event()
        made: list[Election] = []

        async def run() -> None:
            with scope:
                async with open_kube(self.cluster.connection(), transport=line) as kube:
                    made.append(
                        Election(
                            kube,
                            NAME,
                            SPACE,
                            identity=name,
                            term=term,
                            random=self.chance.random,
                            now=lambda: datetime.now(UTC) + timedelta(seconds=clock_error),
                        )
                    )
                    ready.set()
                    await made[0].run(work or self.watchman.work(name))

        self.nursery.start_soon(run)
        await ready.wait()
        return Candidate(name, made[0], line, scope)

    def lease(self) -> dict[str, Any]:
        found = self.cluster.find(LEASES, NAME, SPACE)
        assert found is not None
        spec: dict[str, Any] = found["spec"]
        return spec


@asynccontextmanager
async def open_rig(seed: int = 0) -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        yield Rig(FakeCluster(), Watchman(), nursery, Random(seed))
        nursery.cancel_scope.cancel()


async def test_the_first_makes_the_lease_and_keeps_it(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        await trio.sleep(600)
        assert first.election.leading
        assert (first.election.terms, first.election.holder) == (1, "first")
        lease = rig.lease()
        assert lease["holderIdentity"] == "first"
        assert lease["leaseDurationSeconds"] == 15
        assert lease["leaseTransitions"] == 0
        assert lease["acquireTime"] < lease["renewTime"]
        assert datetime.fromisoformat(lease["renewTime"]).tzinfo is not None
        # Renewed every two seconds, with one request each.
        assert 290 <= len(rig.cluster.seen) <= 310


async def test_the_next_takes_over_at_once_when_the_lease_is_given_back(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        await trio.sleep(10)
        second = await rig.stand("second")
        await trio.sleep(60)
        assert rig.watchman.leading == {"first"}
        assert second.election.holder == "first"
        first.scope.cancel()
        await trio.sleep(3)
        assert rig.watchman.leading == {"second"}
        assert second.election.leading
        assert rig.lease()["leaseTransitions"] == 1


async def test_a_lease_that_is_given_back_has_no_holder(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.cluster.put(
            {
                "apiVersion": LEASES.api_version,
                "kind": "Lease",
                "metadata": {"name": NAME, "namespace": SPACE, "labels": {"team": "x"}},
                "spec": {"strategy": "kept"},
            }
        )
        first = await rig.stand("first")
        await trio.sleep(10)
        first.scope.cancel()
        await trio.sleep(1)
        assert rig.lease()["holderIdentity"] == ""
        assert rig.lease()["leaseDurationSeconds"] == 1
        # What others have put there stays.
        found = rig.cluster.find(LEASES, NAME, SPACE)
        assert found is not None
        assert found["metadata"]["labels"] == {"team": "x"}
        assert found["spec"]["strategy"] == "kept"


async def test_a_holder_that_is_gone_is_waited_for_whatever_its_clock_said(
    autojump_clock: MockClock,
) -> None:
    for clock_error in (-1e6, 0.0, 1e6):
        async with open_rig() as rig:
            first = await rig.stand("first", clock_error=clock_error)
            await trio.sleep(100)
            first.line.cut = True
            began = trio.current_time()
            await rig.stand("second")
            await trio.sleep(30)
            # It has seen a Lease that does not change for fifteen seconds, from its first look on.
            assert 15 <= rig.watchman.began["second"] - began <= 18
            assert [who for who, _, _ in rig.watchman.terms] == ["first"]


async def test_the_work_is_cancelled_before_others_may_take_the_lease(
    autojump_clock: MockClock,
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with open_rig() as rig:
            first = await rig.stand("first")
            await rig.stand("second")
            await trio.sleep(100)
            first.line.cut = True
            began = trio.current_time()
            await trio.sleep(60)
            (_, _, ended), *_ = rig.watchman.terms
            # Ten seconds after the last success, which was at most two seconds ago.
            assert 8 <= ended - began <= 10
            assert rig.watchman.leading == {"second"}
            # Back again, it stands in line.
            first.line.cut = False
            await trio.sleep(60)
            assert not first.election.leading
            assert first.election.holder == "second"
    lost = [line for line in lines if line["event"] == "lease_lost"]
    assert [line["why"] for line in lost] == ["the API server took too long"]


async def test_an_outage_of_the_server_ends_the_work_and_its_end_begins_it_anew(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        await trio.sleep(100)
        rig.cluster.stop()
        await trio.sleep(300)
        assert not rig.watchman.leading
        assert first.election.problem
        rig.cluster.start()
        await trio.sleep(3)
        assert rig.watchman.leading == {"first"}
        assert first.election.terms == 2
        # Nobody else has held it in the meantime.
        assert rig.lease()["leaseTransitions"] == 0


async def test_a_short_outage_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        for _ in range(20):
            await trio.sleep(10)
            rig.cluster.stop()
            await trio.sleep(5.9)  # with up to two seconds before the next try, and after the last
            rig.cluster.start()
        assert first.election.terms == 1
        assert rig.watchman.terms == []


async def test_one_request_that_hangs_leaves_time_for_another(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        await trio.sleep(100)
        rig.cluster.trouble(verb="update", seconds=1e9)
        await trio.sleep(100)
        assert first.election.terms == 1


async def test_a_lease_that_somebody_else_took_is_lost_at_once(autojump_clock: MockClock) -> None:
    with structlog.testing.capture_logs() as lines:
        async with open_rig() as rig:
            await rig.stand("first")
            await trio.sleep(100)
            lease = rig.cluster.find(LEASES, NAME, SPACE)
            assert lease is not None
            lease["spec"] |= {"holderIdentity": "a person with kubectl"}
            rig.cluster.put(lease)
            await trio.sleep(2.1)
            assert not rig.watchman.leading
            assert rig.lease()["holderIdentity"] == "a person with kubectl"
            # Whoever that was does not renew it.
            await trio.sleep(18)
            assert rig.watchman.leading == {"first"}
    (lost,) = [line for line in lines if line["event"] == "lease_lost"]
    assert lost["why"] == "it is held by a person with kubectl"


async def test_a_lease_that_was_deleted_is_lost_and_made_again(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        await trio.sleep(100)
        rig.cluster.remove(LEASES, NAME, SPACE)
        await trio.sleep(5)
        assert first.election.terms == 2
        assert rig.watchman.leading == {"first"}


async def test_a_change_by_others_that_is_none_of_the_holder_is_no_loss(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        for number in range(50):
            await trio.sleep(3)
            lease = rig.cluster.find(LEASES, NAME, SPACE)
            assert lease is not None
            lease["metadata"]["labels"] = {"number": str(number)}
            rig.cluster.put(lease)
        await trio.sleep(3)
        assert first.election.terms == 1
        found = rig.cluster.find(LEASES, NAME, SPACE)
        assert found is not None
        assert found["metadata"]["labels"] == {"number": "49"}


async def test_renewals_whose_answers_are_lost_are_renewals_of_ours(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        for _ in range(20):
            await trio.sleep(7)
            rig.cluster.trouble(verb="update", error=httpx.ReadError, executed=True)
        await trio.sleep(7)
        assert first.election.terms == 1


async def test_a_lease_whose_taking_was_not_confirmed_is_ours_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.cluster.trouble(verb="create", error=httpx.ReadError, executed=True)
        first = await rig.stand("first")
        await trio.sleep(5)
        assert first.election.leading


async def test_two_that_start_together_are_one_leader(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        candidates = [await rig.stand(f"c{number}") for number in range(5)]
        await trio.sleep(100)
        assert len(rig.watchman.leading) == 1
        # One after the other stops; another is there soon, each time.
        while candidates:
            (who,) = rig.watchman.leading
            leader = next(each for each in candidates if each.name == who)
            candidates.remove(leader)
            leader.scope.cancel()
            await trio.sleep(3)
            assert len(rig.watchman.leading) == bool(candidates)


async def test_work_that_ends_by_itself_ends_the_election(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        with trio.fail_after(60):
            async with rig.cluster.open() as kube:
                election = Election(kube, NAME, SPACE, identity="one")
                await election.run(rig.watchman.work("one", 30))
        assert rig.lease()["holderIdentity"] == ""
        assert not election.leading


async def test_what_the_work_raises_comes_out_after_the_lease_was_given_back(
    autojump_clock: MockClock,
) -> None:
    async def fail() -> None:
        await trio.sleep(30)
        raise KeyError("a mistake")

    changes: list[bool] = []
    async with open_rig() as rig, rig.cluster.open() as kube:
        election = Election(kube, NAME, SPACE, identity="one", changed=changes.append)
        with pytest.RaisesGroup(KeyError):
            await election.run(fail)
        assert rig.lease()["holderIdentity"] == ""
        assert changes == [True, False]


async def test_a_lease_that_cannot_be_given_back_holds_nothing_up(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first")
        await trio.sleep(100)
        first.line.cut = True
        began = trio.current_time()
        first.scope.cancel()
        await trio.sleep(5)
        ((_, _, ended),) = rig.watchman.terms
        assert ended - began < 1
        assert rig.lease()["holderIdentity"] == "first"


async def test_a_lease_is_kept_while_the_work_comes_to_its_end(autojump_clock: MockClock) -> None:
    stop = trio.Event()

    async def work() -> None:
        async with rig.watchman.leads("first"):
            await stop.wait()
            await trio.sleep(40)  # what was running

    async with open_rig() as rig:
        await rig.stand("first", work)
        await rig.stand("second")
        await trio.sleep(30)
        stop.set()
        await trio.sleep(39)
        assert rig.watchman.leading == {"first"}
        await trio.sleep(4)
        assert rig.watchman.leading == {"second"}


async def test_a_renewal_that_arrives_late_gives_nobody_a_second_life(
    autojump_clock: MockClock,
) -> None:
    """Requests that were under way when the holder was cut off change nothing for it."""
    async with open_rig() as rig:
        first = await rig.stand("first")
        await rig.stand("second")
        await trio.sleep(100)
        first.line.deaf = True  # its renewals go on to be made, but it does not know
        await trio.sleep(12)
        assert "first" not in rig.watchman.leading
        first.line.deaf, first.line.cut = False, True
        await trio.sleep(30)
        assert rig.watchman.leading == {"second"}


@pytest.mark.parametrize("way", ["held", "late"])
async def test_the_end_of_a_tenure_is_counted_from_before_the_request(
    autojump_clock: MockClock, way: str
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first", term=CLOSE)
        await rig.stand("second", term=CLOSE)
        await trio.sleep(100)
        assert rig.watchman.leading == {"first"}
        setattr(first.line, way, 4.9)  # each of its requests takes nearly as long as it may
        await trio.sleep(100)
        assert rig.watchman.leading == {"first"}
        first.line.cut = True
        await trio.sleep(60)  # the watchman looks on
        assert rig.watchman.leading == {"second"}


async def test_the_beginning_of_a_tenure_is_counted_from_before_the_request(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        first = await rig.stand("first", term=CLOSE, late=2.5)
        await trio.sleep(2.6)  # the Lease is made, and the answer is on its way
        assert not rig.watchman.leading
        first.line.cut = True  # for all further requests
        await rig.stand("second", term=Term(duration=11, renewal=10.5, retry=0.1))
        await trio.sleep(3)
        assert rig.watchman.leading == {"first"}
        await trio.sleep(60)  # the watchman looks on
        assert rig.watchman.leading == {"second"}


@pytest.mark.parametrize(
    "times",
    [
        {"duration": 10, "renewal": 10},
        {"renewal": 3, "retry": 2},
        {"retry": 0},
        {"duration": 5, "renewal": 6, "retry": 1},
    ],
)
def test_times_that_are_not_safe_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="retry"):
        Term(**times)


def test_identities_are_never_the_same() -> None:
    assert make_identity() != make_identity()


@pytest.mark.parametrize("seed", range(20))
async def test_there_are_never_two_leaders_whatever_happens(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_rig(seed) as rig:
        chance = rig.chance
        term = chance.choice([CLOSE, Term(), Term(duration=6, renewal=5, retry=1)])
        count = 0

        async def stand() -> Candidate:
            nonlocal count
            count += 1
            error = chance.choice([0.0, 0.0, -3600.0, 1e7])
            return await rig.stand(f"c{count}", clock_error=error, term=term)

        candidates = [await stand() for _ in range(3)]
        rig.cluster.chaos(chance, chance.choice([0.0, 0.1, 0.5]))
        for _ in range(100):
            await trio.sleep(chance.random() * 6)
            one = chance.choice(candidates)
            match chance.randrange(10):
                case 0:
                    one.line.cut = not one.line.cut
                case 1:
                    one.line.deaf = not one.line.deaf
                case 2:
                    one.line.held = chance.choice([0.0, 0.0, 3.0, 8.0, 20.0])
                    one.line.late = chance.choice([0.0, 0.0, 0.5, 2.4, 4.9])
                case 3:
                    one.scope.cancel()
                    candidates.remove(one)
                    candidates.append(await stand())
                case 4:
                    rig.cluster.stop()
                case 5:
                    rig.cluster.start()
                case _:
                    pass
        rig.cluster.calm()
        for each in candidates:
            each.line.cut = each.line.deaf = False
            each.line.held = each.line.late = 0.0
        await trio.sleep(60)
        assert len(rig.watchman.leading) == 1
        (leader,) = [each for each in candidates if each.election.leading]
        assert rig.watchman.leading == {leader.name}
        assert rig.lease()["holderIdentity"] == leader.name
