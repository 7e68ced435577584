from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Kind, MalformedError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
# Nothing but the members matters; each may be absent, right, or of any other type.
ENVELOPE = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "1.0", 2]),
        "id": JSON,
        "method": JSON,
        "params": JSON,
        "result": JSON,
        "error": JSON,
        "x": JSON,
    },
)


@given(st.binary(max_size=100))
def test_garbage_is_malformed_and_nothing_else(data: bytes) -> None:
    for read in (jsonrpc.parse, jsonrpc.split_batch, jsonrpc.decode):
        try:
            read(data)
        except MalformedError as error:
            assert error.code in (jsonrpc.PARSE_ERROR, jsonrpc.INVALID_REQUEST)  # noqa: PT017


@given(ENVELOPE)
def test_a_message_is_read_or_malformed(value: dict[str, Any]) -> None:
    data = msgspec.json.encode(value)
    try:
        message = jsonrpc.parse(data)
    except MalformedError as error:
        assert error.code == jsonrpc.INVALID_REQUEST  # noqa: PT017
        return
    assert value["jsonrpc"] == "2.0"
    assert message.method == (value["method"] if message.kind is not Kind.RESPONSE else "")
    if message.id:
        assert msgspec.json.decode(message.id) == value["id"]
        assert isinstance(value["id"], int | str)
        assert not isinstance(value["id"], bool)
    both = "result" in value and "error" in value
    for name, kept in [("result", message.result), ("error", message.error)]:
        assert (kept is None) == (name not in value or (both and value[name] is None))
        if kept is not None:
            assert msgspec.json.decode(kept) == value[name]


@given(st.integers(-(2**60), 2**60) | st.text(max_size=20), st.text(min_size=1), JSON)
def test_what_is_written_is_read(ident: int | str, method: str, value: Any) -> None:
    ident_json, value_json = msgspec.json.encode(ident), msgspec.json.encode(value)
    params = msgspec.json.encode({"v": value})
    asked = jsonrpc.parse(jsonrpc.request(ident_json, method, params))
    assert (asked.kind, asked.id, asked.method) == (Kind.REQUEST, ident_json, method)
    assert asked.params == params
    told = jsonrpc.parse(jsonrpc.notification(method))
    assert (told.kind, told.id, told.method, told.params) == (Kind.NOTIFICATION, b"", method, b"")
    answered = jsonrpc.parse(jsonrpc.result(ident_json, value_json))
    assert (answered.kind, answered.id, answered.result) == (Kind.RESPONSE, ident_json, value_json)
    refused = jsonrpc.parse(jsonrpc.error(ident_json, value_json))
    assert (refused.kind, refused.error, refused.result) == (Kind.RESPONSE, value_json, None)


@pytest.mark.parametrize("ident", [b"0", b"1", b'"1"', b"-1", b"1.0", b"1e3", b'""', b'"\\u00e9"'])
def test_an_id_keeps_its_type_and_its_spelling(ident: bytes) -> None:
    data = b'{"jsonrpc":"2.0","id": %b ,"method":"ping"}' % ident
    assert jsonrpc.parse(data).id == ident


@pytest.mark.parametrize("ident", [b"null", b"true", b"false", b"[]", b"{}", b"[1]"])
def test_any_other_id_is_refused(ident: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        jsonrpc.parse(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % ident)
    assert caught.value.code == jsonrpc.INVALID_REQUEST
    assert caught.value.id == b""


def test_an_error_may_be_without_an_id() -> None:
    for data in (
        b'{"jsonrpc":"2.0","id":null,"error":{}}',
        b'{"jsonrpc":"2.0","error":{}}',
    ):
        message = jsonrpc.parse(data)
        assert (message.kind, message.id, message.error) == (Kind.RESPONSE, b"", b"{}")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", jsonrpc.PARSE_ERROR),
        (b"{", jsonrpc.PARSE_ERROR),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"m"}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xff"}}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":}}', jsonrpc.PARSE_ERROR),
        (b"5", jsonrpc.INVALID_REQUEST),
        (b"[]", jsonrpc.INVALID_REQUEST),
        (b"null", jsonrpc.INVALID_REQUEST),
        (b"{}", jsonrpc.INVALID_REQUEST),
        (b'{"id":1,"method":"m"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","params":5}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","result":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","result":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"result":null,"error":null}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","result":{},"error":null}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"m","error":null}', jsonrpc.INVALID_REQUEST),
    ],
)
def test_what_is_no_message(data: bytes, code: int) -> None:
    with pytest.raises(MalformedError) as caught:
        jsonrpc.parse(data)
    assert caught.value.code == code


@pytest.mark.parametrize("depth", [10_000, 200_000])
def test_deep_nesting_is_malformed(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    with pytest.raises(MalformedError):
        jsonrpc.decode(nested)
    try:
        jsonrpc.parse(b'{"jsonrpc":"2.0","id":1,"result":%b}' % nested)
    except MalformedError as error:
        assert error.code == jsonrpc.PARSE_ERROR  # noqa: PT017 - either is fine, a crash is not


def test_a_batch_is_split_into_its_own_bytes() -> None:
    data = b' [ {"a": 1.0} , 5,"x"] '
    assert jsonrpc.is_batch(data)
    assert not jsonrpc.is_batch(b'{"a":[]}')
    assert jsonrpc.split_batch(data) == [b'{"a": 1.0}', b"5", b'"x"']


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[]", jsonrpc.INVALID_REQUEST),
        (b"[1,", jsonrpc.PARSE_ERROR),
        (b'["\xff"]', jsonrpc.PARSE_ERROR),
    ],
)
def test_what_is_no_batch(data: bytes, code: int) -> None:
    with pytest.raises(MalformedError) as caught:
        jsonrpc.split_batch(data)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"code":-32601,"message":"no"}', (-32601, "no")),
        (b'{"code":true,"message":5}', (None, "")),
        (b'{"code":"1"}', (None, "")),
        (b"[]", (None, "")),
        (b"null", (None, "")),
        (b"{", (None, "")),
    ],
)
def test_an_error_object_is_read_as_far_as_it_goes(
    value: bytes, expected: tuple[int | None, str]
) -> None:
    assert jsonrpc.error_code(value) == expected


def test_an_error_object_is_written() -> None:
    assert jsonrpc.error_code(jsonrpc.error_object(-32000, 'a "b"')) == (-32000, 'a "b"')
    assert msgspec.json.decode(jsonrpc.error(b"", b"{}"))["id"] is None


def test_an_outcome_beside_a_null_counts() -> None:
    message = jsonrpc.parse(b'{"jsonrpc":"2.0","id":1,"result":{},"error":null}')
    assert (message.kind, message.result, message.error) == (Kind.RESPONSE, b"{}", None)
    message = jsonrpc.parse(b'{"jsonrpc":"2.0","id":1,"result":null,"error":{}}')
    assert (message.kind, message.result, message.error) == (Kind.RESPONSE, None, b"{}")


# What a string may be made of, as it is written; lone halves, pairs and escaped backslashes meet.
PIECE = st.sampled_from(
    [
        r"\ud83d",
        r"\uDBFF",
        r"\uD800",
        r"\ude00",
        r"\uDC00",
        r"\udfff",
        r"\u0041",
        r"\ud7ff",
        r"\ue000",
        r"\\",
        r"\n",
        r"\"",
        "ud83d",
        "x",
        "\u00e9",
        "\U0001f600",
    ]
)
STRING = st.lists(PIECE, max_size=12).map(lambda pieces: '"' + "".join(pieces) + '"')


def without_halves(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


@given(STRING)
def test_lone_halves_of_a_pair_are_mended_and_nothing_else(written: str) -> None:
    data = written.encode()
    meant = json.loads(written)
    mended = jsonrpc.mend(data)
    assert json.loads(mended) == without_halves(meant)
    assert (mended == data) == (without_halves(meant) == meant)
    assert len(mended) == len(data)
    assert jsonrpc.decode(data) == without_halves(meant)


@given(st.binary(max_size=40) | st.lists(PIECE | st.sampled_from(["\\", "\0"])).map("".join))
def test_mending_never_fails_and_ends(data: bytes | str) -> None:
    raw = data.encode() if isinstance(data, str) else data
    mended = jsonrpc.mend(raw)
    assert len(mended) == len(raw)
    assert jsonrpc.mend(mended) == mended


HALF, WHOLE = rb'"cut \ud83d"', rb'"cut \ufffd"'


def test_a_message_with_half_a_character_is_read() -> None:
    data = rb'{"jsonrpc":"2.0","id":1,"result":{"\\ud83d":[1.0, %b]}}'
    assert jsonrpc.parse(data % HALF).result == rb'{"\\ud83d":[1.0, %b]}' % WHOLE
    assert jsonrpc.split_batch(b"[%b, 1.0]" % HALF) == [WHOLE, b"1.0"]
    assert {k: bytes(v) for k, v in jsonrpc.members(b'{"a":%b}' % HALF).items()} == {"a": WHOLE}
    assert [bytes(part) for part in jsonrpc.elements(b"[%b]" % HALF)] == [WHOLE]
    assert jsonrpc.decode(HALF) == "cut \ufffd"
    asked = jsonrpc.parse(b'{"jsonrpc":"2.0","id":1,"method":%b}' % HALF)
    assert asked.method == "cut \ufffd"


def test_a_flood_of_halves_is_malformed() -> None:
    with pytest.raises(MalformedError):
        jsonrpc.decode(b'"%b"' % (rb"\ud83d" * 250_001))
    assert len(jsonrpc.decode(b'"%b"' % (rb"\ud83d" * 250_000))) == 250_000


def test_mending_does_not_hide_what_else_is_wrong() -> None:
    for data in (b'{"jsonrpc":"2.0","id":1,"result":[%b}' % HALF, HALF[:-1]):
        with pytest.raises(MalformedError) as caught:
            jsonrpc.parse(data)
        assert caught.value.code == jsonrpc.PARSE_ERROR
    with pytest.raises(MalformedError) as caught:
        jsonrpc.parse(b'{"jsonrpc":"2.0","id":[%b],"method":"m"}' % HALF)
    assert caught.value.code == jsonrpc.INVALID_REQUEST
