from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kars_router.wire.names import LIMIT, public_name, server_of, split_dotted

ALLOWED = re.compile(r"[A-Za-z0-9_-]{1,64}")
SERVER = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
TOOL = st.text(min_size=1, max_size=100) | st.from_regex(r"[A-Za-z0-9_-]{1,80}", fullmatch=True)


@given(SERVER, TOOL)
def test_a_public_name_fits_every_model(server: str, tool: str) -> None:
    name = public_name(server, tool)
    assert ALLOWED.fullmatch(name)
    assert name == public_name(server, tool)


@given(st.tuples(SERVER, TOOL), st.tuples(SERVER, TOOL))
@example(("s", "a.b"), ("s", "a_b"))
@example(("s", "a.b"), ("s", "a/b"))
@example(("s", "x" * 70), ("s", "x" * 71))
@example(("a", "b__c"), ("a-b", "c"))
def test_two_tools_never_get_one_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (public_name(*one) == public_name(*other)) == (one == other)


@given(SERVER, TOOL)
def test_a_tool_cannot_take_the_name_that_another_was_given(server: str, tool: str) -> None:
    name = public_name(server, tool)
    imitation = name.removeprefix(f"{server}__")
    if imitation not in (name, tool):
        assert public_name(server, imitation) != name


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("browser_click", "pw__browser_click"),
        ("x" * (LIMIT - 4), "pw__" + "x" * (LIMIT - 4)),
        ("a__b", "pw__a__b"),
    ],
)
def test_a_name_that_fits_is_kept(tool: str, name: str) -> None:
    assert public_name("pw", tool) == name


def test_the_hash_is_part_of_the_contract() -> None:
    # Agents store names, so that they must not change from one release to the next.
    assert public_name("pw", "a.b") == "pw__a_b_adc3a3ed28"
    assert len(public_name("pw", "y" * 100)) == LIMIT


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("pw.click", ("pw", "click")),
        ("pw.a.b", ("pw", "a.b")),
        ("pw", None),
        (".x", None),
        ("pw.", None),
    ],
)
def test_the_dotted_spelling(name: str, parts: tuple[str, str] | None) -> None:
    assert split_dotted(name) == parts


@pytest.mark.parametrize(
    ("name", "server"),
    [("pw__x", "pw"), ("pw.x", "pw"), ("pw__", None), ("__x", None), ("pw", None), ("a.b__c", "a")],
)
def test_the_server_of_a_name(name: str, server: str | None) -> None:
    assert server_of(name) == server
