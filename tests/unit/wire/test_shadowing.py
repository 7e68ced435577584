"""No server can make its tool take the public name of another server's tool."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kars_router.wire import names
from kars_router.wire.names import LIMIT, public_name

# What a configuration lets through, biased to names that begin alike.
SERVERS = st.from_regex(r"[a-c0]([a-c0-]{0,61}[a-c0])?", fullmatch=True) | st.from_regex(
    r"a{50,62}[a-c]", fullmatch=True
)
PIECES = st.sampled_from(
    [
        *("__", "_", ".", "-", "a", "b", "a__b", "A"),
        *("\u0430", "\uff3f\uff3f", "\u2024", "0" * 10, "x" * 60),
    ]
)
TOOLS = st.lists(PIECES, min_size=1, max_size=5).map("".join) | st.text(min_size=1, max_size=256)


@given(SERVERS, TOOLS, SERVERS, TOOLS)
@example("a", "b__c", "a-b", "c")
@example("a", "_b", "a", "b")
@example("a", "b.c", "b", "c")
@example("a" * 60 + "b", "x" * 60, "a" * 60 + "c", "x" * 60)
@example("a" * 52, "x" * 60, "a" * 53, "x" * 60)
def test_what_comes_before_the_separator_is_the_server_alone(
    one: str, its: str, other: str, others: str
) -> None:
    assume(one != other)
    first, found, _ = public_name(one, its).partition("__")
    assert found
    assert first != public_name(other, others).partition("__")[0]


@given(SERVERS, TOOLS)
def test_a_public_name_belongs_to_the_server_that_it_seems_to(server: str, tool: str) -> None:
    name = public_name(server, tool)
    assert len(name) <= LIMIT
    assert names.server_of(name) in (server, name.partition("__")[0])
    if len(server) <= 51:
        assert names.server_of(name) == server
    assert names.split_public(name) in (None, (server, tool))


@given(SERVERS, TOOLS, SERVERS, TOOLS)
def test_the_dotted_spelling_of_one_tool_is_no_public_name_of_another(
    one: str, its: str, other: str, others: str
) -> None:
    assert f"{one}.{its}" != public_name(other, others)


def suffixes(server: str) -> Iterator[tuple[str, str]]:
    """Tools that look alike, with the first two digits of the hashes in their public names."""
    for number in count():
        tool = f"{'x' * 100}{number}"
        plain = f"{server}__{tool}"
        yield tool, hashlib.sha256(plain.encode()).hexdigest()[:2]


@pytest.mark.parametrize("length", [1, 51, 52, 53, 60, 63])
def test_choosing_a_name_by_its_hash_gains_nothing(length: int) -> None:
    # With two digits in place of ten, to find one at once: the rest of the name differs.
    victim, attacker = f"{'s' * (length - 1)}a", f"{'s' * (length - 1)}b"
    target, wanted = next(suffixes(victim))
    tool = next(tool for tool, digits in suffixes(attacker) if digits == wanted)
    mine, theirs = public_name(attacker, tool), public_name(victim, target)
    assert mine[-10:-8] == theirs[-10:-8] == wanted
    assert mine[:-10] != theirs[:-10]
