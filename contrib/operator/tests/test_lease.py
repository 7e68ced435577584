"""Leader election: one leader, and another as soon as that is safe."""

from __future__ import annotations

from datetime import datetime

import pytest
import trio
from kars_operator.lease import Election, Term
from lease_kit import NAME, SPACE, open_rig
from trio.testing import MockClock

from kars_router.kube.resources import LEASES


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
