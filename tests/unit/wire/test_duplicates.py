from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.wire import jsonrpc
from kars_router.wire.duplicates import ambiguous, misspelt

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        '{"o":[{"x":{"a":1, "b":2, "a":3}}]}',
        '{"\\ud800":1,"\\ud801":2}',
        '{"":1,"":2}',
    ],
)
def test_a_name_that_is_given_twice_is_found(text: str) -> None:
    data = text.encode()
    assert ambiguous(data, jsonrpc.decode(data))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        ' { "a" : 1 , "b" : { "a" : 1 } } ',
        '{"a":1e2,"b":1.0,"c":-0,"d":0.10}',
        '{"a":' + "9" * 4000 + ', "b": 1}',
        '[{"a":1}, {"a":2}]',
        '{"a":"\\"a\\":1,\\"a\\":2", "b":""}',
        '{"a":"\\ud83d\\ude00", "A":"\\ud800"}',
    ],
)
def test_other_values_are_left_alone(text: str) -> None:
    data = text.encode()
    assert not ambiguous(data, jsonrpc.decode(data))


def test_what_cannot_be_told_is_taken_for_ambiguous() -> None:
    deep = b"[" * 200_000 + b" ]" + b"]" * 199_999
    assert ambiguous(deep, [])


@given(JSON, st.sampled_from([None, 1]))
def test_what_one_writer_wrote_names_nothing_twice(value: object, indent: int | None) -> None:
    data = json.dumps(value, indent=indent).encode()
    try:
        decoded = jsonrpc.decode(data)
    except jsonrpc.MalformedError:
        return
    lone = json.dumps(decoded) != json.dumps(value)  # halves of characters, mended
    assert lone or not ambiguous(data, decoded)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("name", None),
        ("Name", "name"),
        ("NAME", "name"),
        ("argument\u017f", "arguments"),
        ("tas\u212a", "task"),
        ("names", None),
        ("", None),
    ],
)
def test_another_spelling_of_a_known_name_is_found(name: str, found: str | None) -> None:
    known = {each: each for each in ("name", "arguments", "task")}
    assert misspelt(["x", name], known) == found
