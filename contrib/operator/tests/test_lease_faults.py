"""Leader election: whatever goes wrong, there are never two leaders."""

from __future__ import annotations

import httpx
import pytest
import structlog
import trio
from kars_operator.lease import Term
from lease_kit import CLOSE, NAME, SPACE, Candidate, open_rig
from trio.testing import MockClock

from kars_router.kube.resources import LEASES


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
