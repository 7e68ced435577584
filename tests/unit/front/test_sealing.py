from __future__ import annotations

import base64
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.errors import UserError
from kars_router.front.sealing import KEY_BYTES, KEY_FILE, Seal, Sealer, Ticket, load_key

KEY = bytes(range(KEY_BYTES))
VISIBLE = set(string.ascii_letters + string.digits + "-_")


@given(
    agent=st.text(max_size=40),
    client=st.text(max_size=64),
    created=st.floats(allow_nan=False, allow_infinity=False),
)
def test_what_is_sealed_comes_back(agent: str, client: str, created: float) -> None:
    ticket = Ticket(agent, "2025-11-25", "box", created, client)
    session = Sealer(KEY).seal(ticket)
    assert set(session) <= VISIBLE
    assert Sealer(KEY).open(session) == ticket


@given(st.text(max_size=200))
def test_whatever_is_no_id_opens_nothing(text: str) -> None:
    assert Sealer(KEY).open(text) is None


@pytest.mark.parametrize("padding", range(6))
def test_each_id_has_one_spelling(padding: int) -> None:
    sealer = Sealer(KEY)
    session = sealer.seal(Ticket("a" * padding, "2025-11-25", "", 0.0))
    for place in range(len(session)):
        for letter in VISIBLE - {session[place]}:
            assert sealer.open(session[:place] + letter + session[place + 1 :]) is None
    raw = base64.urlsafe_b64decode(session + "=" * (-len(session) % 4))
    for more in (raw + b"\0", raw[:-1], raw[:28], raw[:12], b""):
        assert sealer.open(base64.urlsafe_b64encode(more).decode().rstrip("=")) is None
    for spelling in (f"{session}=", f" {session}", f"{session}\n", session.replace("-", "+")):
        assert spelling == session or sealer.open(spelling) is None


def test_another_key_opens_nothing() -> None:
    session = Sealer(KEY).seal(Ticket("a", "2025-11-25", "", 0.0))
    assert Sealer(KEY[::-1]).open(session) is None


def test_what_was_sealed_for_one_purpose_opens_nothing_for_another() -> None:
    one, other = Seal(KEY, b"one, version 1", list[int]), Seal(KEY, b"other, version 1", list[int])
    assert one.open(one.seal([1, 2])) == [1, 2]
    assert other.open(one.seal([1, 2])) is None
    assert Sealer(KEY).open(one.seal([1, 2])) is None


def test_what_is_bound_opens_only_with_what_it_belongs_to() -> None:
    seal = Seal(KEY, b"one, version 1", list[int])
    text = seal.seal([1, 2], b"here")
    assert seal.open(text, b"here") == [1, 2]
    for elsewhere in (b"", b"there", b"here "):
        assert seal.open(text, elsewhere) is None
    assert seal.open(seal.seal([1, 2]), b"here") is None


@given(st.binary(max_size=8), st.lists(st.integers(0, 9), max_size=4), st.integers(0, 12))
def test_what_is_bound_cannot_become_a_part_of_what_is_sealed(
    bound: bytes, value: list[int], size: int
) -> None:
    """The bytes under the seal stay in their places, wherever the border between them is drawn."""
    seal = Seal(KEY, b"one, version 1", list[int])
    raw = base64.urlsafe_b64decode(seal.seal(value, bound) + "==")
    both = bound + raw[32:]
    if size != len(bound):
        moved = base64.urlsafe_b64encode(raw[:32] + both[size:]).decode().rstrip("=")
        assert seal.open(moved, both[:size]) is None


def test_a_key_is_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "state"
    key = load_key(directory)
    assert len(key) == KEY_BYTES
    assert load_key(directory) == key
    assert (directory / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o077 == 0
    assert [path.name for path in directory.iterdir()] == [KEY_FILE]


def test_without_a_directory_each_key_is_new() -> None:
    assert load_key(None) != load_key(None)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * (KEY_BYTES + 1)])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(UserError, match="must hold exactly 32 bytes") as caught:
        load_key(tmp_path)
    assert str(tmp_path / KEY_FILE) in str(caught.value)
    assert (tmp_path / KEY_FILE).read_bytes() == content


def test_a_directory_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="state: "):
        load_key(tmp_path / "file" / "state")
