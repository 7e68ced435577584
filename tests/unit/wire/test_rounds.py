from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.json_kit import OBJECT, members, read

from kars_router.wire import envelope, jsonrpc, rounds
from kars_router.wire.envelope import EnvelopeError

STATE = st.sampled_from([b'"abc"', b'"\\u0061\\/"', b'""'])
KEYS = st.text(max_size=4)
QUESTIONS = st.dictionaries(
    KEYS, st.tuples(st.sampled_from(sorted(rounds.QUESTIONS)), OBJECT.map(str.encode)), max_size=3
)


@given(QUESTIONS, st.none() | STATE)
def test_questions_are_read_as_they_were_written(
    questions: dict[str, tuple[str, bytes]], state: bytes | None
) -> None:
    result = rounds.input_required(questions, state)
    assert envelope.result_type(result) == "input_required"
    assert rounds.input_requests(result) == questions
    assert rounds.request_state(result) == state
    assert ("inputRequests" in members(result)) == bool(questions)


def test_a_question_may_have_no_params() -> None:
    asked = b'{"inputRequests":{"a":{"method":"roots/list"},"b":{"method":"x","params":null}}}'
    assert rounds.input_requests(asked) == {"a": ("roots/list", b""), "b": ("x", b"")}
    written = rounds.input_required({"a": ("roots/list", b"")}, None)
    assert rounds.input_requests(written) == {"a": ("roots/list", b"{}")}


@pytest.mark.parametrize("result", [b"{}", b'{"inputRequests":null,"requestState":null}'])
def test_a_result_may_ask_nothing(result: bytes) -> None:
    assert rounds.input_requests(result) == {}
    assert rounds.request_state(result) is None


@pytest.mark.parametrize(
    "result",
    [
        b"[]",
        b'{"inputRequests":[]}',
        b'{"inputRequests":{"a":5}}',
        b'{"inputRequests":{"a":{}}}',
        b'{"inputRequests":{"a":{"method":5}}}',
        b'{"inputRequests":{"a":{"method":"roots/list","params":[]}}}',
    ],
)
def test_questions_that_cannot_be_read(result: bytes) -> None:
    with pytest.raises(jsonrpc.MalformedError):
        rounds.input_requests(result)


@given(
    OBJECT,
    st.dictionaries(KEYS, OBJECT.map(str.encode), max_size=3),
    st.none() | STATE,
)
def test_answers_go_out_and_come_back(
    params: str, answers: dict[str, bytes], state: bytes | None
) -> None:
    plain = jsonrpc.encode(jsonrpc.members(params.encode()))
    again = rounds.with_responses(plain, answers, state)
    assert rounds.without_responses(again) == (plain, answers, state)
    found = members(again)
    assert ("inputResponses" in found) == bool(answers)
    if state is None:
        assert "requestState" not in found
    else:
        assert found["requestState"] == read(state)


def test_answers_of_the_round_before_are_left_out() -> None:
    before = rounds.with_responses(b'{"name":"t"}', {"a": b"{}"}, b'"one"')
    assert rounds.with_responses(before, {}, None) == b'{"name":"t"}'
    assert rounds.with_responses(b"", {}, b'"s"') == b'{"requestState":"s"}'


@pytest.mark.parametrize("params", [b"", b'{ "name": "t" }'])
def test_a_first_request_is_not_written_anew(params: bytes) -> None:
    same, answers, state = rounds.without_responses(params)
    assert same is params
    assert (answers, state) == ({}, None)


@pytest.mark.parametrize(
    "params",
    [
        b'{"inputResponses":null}',
        b'{"inputResponses":[]}',
        b'{"inputResponses":{"a":12345}}',
        b'{"inputResponses":{"a":{},"b":"{}"}}',
        b'{"requestState":5}',
        b'{"requestState":{}}',
    ],
)
def test_answers_that_nobody_can_use(params: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        rounds.without_responses(params)
    assert (caught.value.code, caught.value.status) == (jsonrpc.INVALID_PARAMS, 400)


def test_no_state_may_be_written_as_null() -> None:
    assert rounds.without_responses(b'{"requestState":null}') == (b"{}", {}, None)


def test_what_is_no_object_is_malformed() -> None:
    for read_it in (
        rounds.request_state,
        rounds.without_responses,
        lambda data: rounds.with_responses(data, {}, None),
    ):
        with pytest.raises(jsonrpc.MalformedError):
            read_it(b"[1]")


def test_the_methods_that_may_ask() -> None:
    assert {"tools/call", "prompts/get", "resources/read"} == rounds.METHODS


def test_a_state_alone_is_enough() -> None:
    assert msgspec.json.decode(rounds.input_required({}, b'"s"')) == {
        "resultType": "input_required",
        "requestState": "s",
    }
