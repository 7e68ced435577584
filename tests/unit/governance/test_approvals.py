from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import define, evolve

from kars_router.errors import StoreError, UserError
from kars_router.governance.approvals import FILE, Approval, ApprovalState, ApprovalStore
from kars_router.governance.holding import digest_of
from kars_router.model import GovernedCall


@define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ApprovalStore]:
    made = ApprovalStore(tmp_path, clock)
    yield made
    made.close()


def approval(ident: str = "a", digest: str = "d", expires: float = 1100.0) -> Approval:
    return Approval(
        id=ident,
        digest=digest,
        call="c",
        agent="agent",
        server="box",
        method="tools/call",
        name="read",
        arguments='{"x":"é"}',
        created=1000.0,
        expires=expires,
    )


def test_what_is_kept_is_there_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    first = ApprovalStore(tmp_path, clock)
    first.add(approval())
    first.add(approval("b"))
    first.change("b", ApprovalState.PENDING, state=ApprovalState.APPROVED, by="ada")
    # No close: the process was killed.
    second = ApprovalStore(tmp_path, clock)
    assert second.get("a") == approval()
    assert [each.id for each in second.pending()] == ["a"]
    assert [(each.id, each.state) for each in second.find("d")] == [
        ("a", ApprovalState.PENDING),
        ("b", ApprovalState.APPROVED),
    ]
    first.close()
    second.close()


def test_there_is_no_file_before_there_is_an_approval(tmp_path: Path, store: ApprovalStore) -> None:
    assert store.pending() == store.all() == store.find("d") == []
    assert store.count() == 0
    assert store.get("a") is None
    assert store.change("a", ApprovalState.PENDING, state=ApprovalState.APPROVED) is None
    assert [*tmp_path.iterdir()] == []
    store.add(approval())
    assert (tmp_path / FILE).exists()
    assert store.count() == 1


def test_a_file_that_cannot_be_made_keeps_nothing(tmp_path: Path, store: ApprovalStore) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StoreError):
        store.add(approval())
    (tmp_path / FILE).rmdir()
    store.add(approval())
    assert store.get("a") == approval()


def test_an_approval_is_used_once(store: ApprovalStore) -> None:
    store.add(approval())
    assert store.change("a", ApprovalState.APPROVED, state=ApprovalState.USED) is None
    store.change("a", ApprovalState.PENDING, state=ApprovalState.APPROVED)
    used = store.change("a", ApprovalState.APPROVED, state=ApprovalState.USED)
    assert used == evolve(approval(), state=ApprovalState.USED)
    assert store.change("a", ApprovalState.APPROVED, state=ApprovalState.USED) is None
    assert store.find("d") == []


def test_what_is_not_decided_in_time_expires(store: ApprovalStore, clock: Clock) -> None:
    store.add(approval(expires=1010.0))
    clock.now = 1010.0
    assert store.pending() == []
    assert store.find("d") == []
    (only,) = store.all()
    assert only.state is ApprovalState.EXPIRED


def test_old_ones_are_forgotten(store: ApprovalStore, clock: Clock) -> None:
    for index in range(1100):
        store.add(approval(f"x{index}", expires=1001.0))
    store.add(approval("open", expires=1e9))
    clock.now = 1002.0
    left = store.all()
    assert len(left) <= 1001
    assert left[-1].id == "open"
    clock.now = 1002.0 + 8 * 86_400
    assert [each.id for each in store.all()] == ["open"]


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_broken_file_is_named(tmp_path: Path, clock: Clock, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"approvals\.sqlite3 cannot be used"):
        ApprovalStore(tmp_path, clock)


def call(**changes: object) -> GovernedCall:
    fields = {
        "id": "1",
        "agent": "agent",
        "server": "box",
        "method": "tools/call",
        "name": "read",
        "params": b'{"name":"read","arguments":{"x":1}}',
    }
    return GovernedCall(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_same_call_is_known_again() -> None:
    assert digest_of(call()) == digest_of(
        call(
            id="2",
            params=b'{"arguments":{"x":1},"_meta":{"progressToken":7},"name":"read"}',
            time=5.0,
        )
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": "other"},
        {"server": "other"},
        {"name": "other"},
        {"method": "prompts/get"},
        {"params": b'{"name":"read","arguments":{"x":2}}'},
        {"params": b'{"name":"read","arguments":{"x":1},"requestState":"s"}'},
        {"params": b"[]"},
    ],
)
def test_another_call_is_another(changes: dict[str, object]) -> None:
    assert digest_of(call(**changes)) != digest_of(call())


def test_worker_threads_do_not_get_into_each_others_transactions(store: ApprovalStore) -> None:
    idents = [str(each) for each in range(200)]
    for ident in idents:
        store.add(approval(ident, expires=10_000.0))

    def use(ident: str) -> bool:
        changed = store.change(ident, ApprovalState.PENDING, state=ApprovalState.USED)
        return changed is not None

    with ThreadPoolExecutor(8) as pool:
        # Each is asked for twice, and is to be had once.
        assert sum(pool.map(use, [*idents, *idents])) == len(idents)
    assert store.pending() == []
