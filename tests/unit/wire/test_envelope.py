from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.json_kit import OBJECT, members, read

from kars_router.wire import envelope, eras, jsonrpc
from kars_router.wire.envelope import EnvelopeError
from kars_router.wire.jsonrpc import Kind, Message

VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}
HEADERS = {"MCP-Protocol-Version": VERSION, "Mcp-Method": "tools/list"}
CALL = HEADERS | {"Mcp-Method": "tools/call", "Mcp-Name": "echo"}


def request(params: Any, method: str = "tools/list") -> Message:
    return Message(Kind.REQUEST, b"1", method, msgspec.json.encode(params))


def check(message: Message, headers: dict[str, str]) -> envelope.Envelope:
    return envelope.check(message, [(k.encode(), v.encode()) for k, v in headers.items()])


def refused(message: Message, headers: dict[str, str]) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        check(message, headers)
    assert caught.value.status == 400
    return caught.value


def test_what_the_revision_lays_down() -> None:
    codes = (envelope.HEADER_MISMATCH, envelope.MISSING_CAPABILITY, envelope.UNSUPPORTED_VERSION)
    assert codes == (-32020, -32021, -32022)
    lists = {"tools/list", "prompts/list", "resources/list", "resources/templates/list"}
    assert lists | {"server/discover", "resources/read"} == envelope.CACHEABLE


# --- which era -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "header", "claimed"),
    [
        (b'{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}', "", True),
        (rb'{"_meta":{"io.modelcontextprotocol\/protocolVersion":null}}', "2025-11-25", True),
        (rb'{"\u005fmeta":{"io.modelcontextprotocol/\u0070rotocolVersion":1}}', "", True),
        (b"", "2026-07-28", True),
        (b"", " 2026-07-28\t", True),
        (b"{}", "2099-01-01", True),
        (b"{}", "nonsense", True),
        (b"", "", False),
        (b"", " ", False),
        (b"[]", "2025-11-25", False),
        (b"{}", "2024-11-05", False),
        (b'{"protocolVersion":"2025-11-25"}', "", False),
        (b'{"_meta":{"protocolVersion":"2026-07-28"}}', "", False),
        (b'{"_meta":{"progressToken":"\\u0031"}}', "2025-06-18", False),
        (b'{"x":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}', "", False),
        (b'{"_meta":"io.modelcontextprotocol/protocolVersion"}', "", False),
        (b'{"io.modelcontextprotocol/protocolVersion":', "", False),
    ],
)
def test_one_sign_of_the_stateless_era_suffices(params: bytes, header: str, claimed: bool) -> None:
    assert envelope.claims(params, header) is claimed


@pytest.mark.parametrize("revision", eras.HANDSHAKE_REVISIONS)
def test_a_handshake_revision_claims_nothing(revision: str) -> None:
    assert not envelope.claims(b"{}", revision)


# --- the ladder ------------------------------------------------------------------------------


def test_a_whole_envelope_is_read() -> None:
    meta = META | {
        "io.modelcontextprotocol/clientInfo": {"name": "a", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"sampling": {}},
        "io.modelcontextprotocol/logLevel": "warning",
    }
    found = check(request({"_meta": meta}), HEADERS)
    assert found == envelope.Envelope(
        version=VERSION,
        capabilities=b'{"sampling":{}}',
        client_info=b'{"name":"a","version":"1"}',
        log_level="warning",
    )


@pytest.mark.parametrize("empty", [{}, {"io.modelcontextprotocol/clientInfo": None}])
def test_who_the_client_is_may_be_left_open(empty: dict[str, Any]) -> None:
    found = check(request({"_meta": META | empty}), HEADERS)
    assert (found.capabilities, found.client_info, found.log_level) == (b"{}", b"", "")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "protocolVersion and io.modelcontextprotocol/clientCapabilities"),
        ({"_meta": None}, "protocolVersion"),
        ({"_meta": []}, "protocolVersion"),
        ([], "protocolVersion"),
        ({"_meta": {"io.modelcontextprotocol/protocolVersion": VERSION}}, "clientCapabilities"),
        ({"_meta": {"io.modelcontextprotocol/clientCapabilities": {}}}, "protocolVersion"),
        ({"_meta": META | {"io.modelcontextprotocol/protocolVersion": 1}}, "a string"),
        ({"_meta": META | {"io.modelcontextprotocol/clientCapabilities": None}}, "an object"),
        ({"_meta": META | {"io.modelcontextprotocol/clientCapabilities": []}}, "an object"),
        ({"_meta": META | {"io.modelcontextprotocol/clientInfo": "me"}}, "an object"),
        ({"_meta": META | {"io.modelcontextprotocol/logLevel": "loud"}}, "log level"),
        ({"_meta": META | {"io.modelcontextprotocol/logLevel": 1}}, "log level"),
    ],
)
def test_an_envelope_that_is_not_whole_is_refused(params: Any, words: str) -> None:
    error = refused(request(params), {})  # before the headers, which are all wrong here
    assert error.code == jsonrpc.INVALID_PARAMS
    assert words in error.message


@pytest.mark.parametrize("name", ["MCP-Protocol-Version", "mcp-method", "Mcp-Name"])
def test_a_routing_header_that_occurs_twice_is_refused_first(name: str) -> None:
    pairs = [(b"mcp-x", b"1"), (b"mcp-x", b"1"), (name.lower().encode(), b"1")]
    with pytest.raises(EnvelopeError) as caught:
        envelope.check(request({}), [*pairs, (name.encode(), b"1")])
    assert caught.value.code == envelope.HEADER_MISMATCH
    assert f"{name.lower()} occurs more than once" in caught.value.message


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"MCP-Protocol-Version": None}, "mcp-protocol-version is missing"),
        ({"MCP-Protocol-Version": "2025-11-25"}, "mcp-protocol-version does not"),
        ({"Mcp-Method": None}, "mcp-method is missing"),
        ({"Mcp-Method": "TOOLS/CALL"}, "mcp-method does not"),
        ({"Mcp-Method": "tools/list"}, "mcp-method does not"),
        ({"Mcp-Name": None}, "mcp-name is missing"),
        ({"Mcp-Name": "Echo"}, "mcp-name does not"),
        ({"Mcp-Name": ""}, "mcp-name does not"),
        ({"Mcp-Name": "=?base64?ZWNobw?="}, "mcp-name cannot be decoded"),
        ({"Mcp-Name": "\u00e9cho"}, "mcp-name cannot be decoded"),
    ],
)
def test_headers_have_to_match_the_body(headers: dict[str, str | None], words: str) -> None:
    sent = {name: value for name, value in (CALL | headers).items() if value is not None}
    error = refused(request({"_meta": META, "name": "echo"}, "tools/call"), sent)
    assert error.code == envelope.HEADER_MISMATCH
    assert words in error.message


@pytest.mark.parametrize(
    ("method", "params", "header"),
    [
        ("tools/call", {"name": "echo"}, "echo"),
        ("tools/call", {"name": "echo"}, "  echo "),
        ("tools/call", {"name": "echo"}, "=?base64?ZWNobw==?="),
        ("prompts/get", {"name": "\u4e16"}, "=?base64?5LiW?="),
        ("resources/read", {"uri": "file:///a", "name": "b"}, "file:///a"),
        ("resources/subscribe", {"uri": "file:///a"}, "whatever"),
        ("tools/call", {}, None),
        ("tools/call", {"name": 5}, None),
    ],
)
def test_headers_that_match_the_body(method: str, params: Any, header: str | None) -> None:
    headers = CALL | {"Mcp-Method": method, "Mcp-Name": header or ""}
    if header is None:
        del headers["Mcp-Name"]
    assert check(request({"_meta": META} | params, method), headers).version == VERSION


@pytest.mark.parametrize(
    ("method", "key"), [("tools/call", "name"), ("prompts/get", "name"), ("resources/read", "uri")]
)
def test_the_methods_whose_name_is_a_header(method: str, key: str) -> None:
    message = request({"_meta": META, key: "one"}, method)
    error = refused(message, CALL | {"Mcp-Method": method, "Mcp-Name": "other"})
    assert error.code == envelope.HEADER_MISMATCH


def test_a_name_that_only_the_header_has_is_refused() -> None:
    error = refused(request({"_meta": META}, "tools/call"), CALL)
    assert error.code == envelope.HEADER_MISMATCH


@pytest.mark.parametrize("version", ["v999.0.0", "2025-11-25", ""])
def test_a_version_that_is_not_supported_is_refused_last(version: str) -> None:
    meta = META | {"io.modelcontextprotocol/protocolVersion": version}
    error = refused(request({"_meta": meta}), HEADERS | {"MCP-Protocol-Version": version})
    assert error.code == envelope.UNSUPPORTED_VERSION
    assert msgspec.json.decode(error.data) == {"supported": [VERSION], "requested": version}
    assert msgspec.json.decode(error.as_json()) == {
        "code": -32022,
        "message": "this protocol version is not supported; 2026-07-28 is",
        "data": {"supported": [VERSION], "requested": version},
    }
    assert refused(request({"_meta": meta}), {}).code == envelope.HEADER_MISMATCH


def test_an_error_without_data_has_none() -> None:
    error = EnvelopeError(-32020, "no")
    assert error.as_json() == b'{"code":-32020,"message":"no"}'


# --- params ----------------------------------------------------------------------------------

HOP = st.sampled_from(envelope.HOP_KEYS)
FOREIGN = st.sampled_from(["progressToken", "traceparent", "io.modelcontextprotocol/x", "a"])


@given(OBJECT, st.dictionaries(HOP | FOREIGN, st.sampled_from(['"1"', "{ }", "1.0"]), max_size=5))
def test_only_what_belongs_to_the_hop_is_stripped(params: str, meta: dict[str, str]) -> None:
    fields = jsonrpc.members(params.encode())
    inner = ",".join(f'"{key}": {value}' for key, value in meta.items())
    fields["_meta"] = msgspec.Raw(f"{{{inner}}}".encode())
    before = jsonrpc.encode(fields)
    after = envelope.strip(before)
    kept = {key: value for key, value in meta.items() if key not in envelope.HOP_KEYS}
    expected = members(before)
    if kept != meta:
        expected["_meta"] = ("object", [(key, read(value)) for key, value in kept.items()])
        if not kept:
            del expected["_meta"]
    assert members(after) == expected
    assert (after == before) == (kept == meta)


@given(OBJECT, st.booleans())
def test_what_is_stamped_is_stripped_again(params: str, full: bool) -> None:
    plain = jsonrpc.encode(
        {k: v for k, v in jsonrpc.members(params.encode()).items() if k != "_meta"}
    )
    stamped = envelope.stamp(
        plain,
        version=VERSION,
        capabilities=b'{ "roots":{} }',
        client_info=b'{"name":"r","version":"1.0"}' if full else b"",
        log_level="info" if full else "",
    )
    assert envelope.strip(stamped) == plain
    meta = msgspec.json.decode(jsonrpc.members(stamped)["_meta"])
    assert meta.pop("io.modelcontextprotocol/protocolVersion") == VERSION
    assert meta.pop("io.modelcontextprotocol/clientCapabilities") == {"roots": {}}
    if full:
        assert meta.pop("io.modelcontextprotocol/clientInfo") == {"name": "r", "version": "1.0"}
        assert meta.pop("io.modelcontextprotocol/logLevel") == "info"
    assert meta == {}


def test_what_the_last_hop_said_is_replaced() -> None:
    before = envelope.stamp(
        b'{"_meta":{"progressToken":1.0}}',
        version="old",
        capabilities=b'{"sampling":{}}',
        client_info=b'{"name":"agent"}',
        log_level="debug",
    )
    after = envelope.stamp(before, version=VERSION, capabilities=b"{}")
    assert members(after)["_meta"] == (
        "object",
        [
            ("progressToken", ("number", "1.0")),
            (envelope.VERSION_KEY, VERSION),
            (envelope.CAPABILITIES_KEY, ("object", [])),
        ],
    )


@pytest.mark.parametrize("params", [b"", b"{}", b'{"_meta":5}'])
def test_params_without_an_envelope_get_one(params: bytes) -> None:
    stamped = envelope.stamp(params, version=VERSION, capabilities=b"{}")
    assert msgspec.json.decode(stamped) == {"_meta": META}


@pytest.mark.parametrize("params", [b"", b"{}", b'{"_meta":{}}', b'{ "_meta" : 5 }'])
def test_where_nothing_is_to_strip_the_same_bytes_come_back(params: bytes) -> None:
    assert envelope.strip(params) is params


def test_params_that_are_no_object_are_malformed() -> None:
    for change in (
        envelope.strip,
        lambda params: envelope.stamp(params, version="", capabilities=b"{}"),
        lambda params: envelope.tag(params, b"1"),
    ):
        with pytest.raises(jsonrpc.MalformedError):
            change(b"[1]")


# --- results ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (b"{}", "complete"),
        (b'{"x":{"resultType":"task"}}', "complete"),
        (b'{"resultType":"complete"}', "complete"),
        (b'{"resultType":"input_required"}', "input_required"),
        (rb'{"\u0072esultType":"task"}', "task"),
        (b'{"resultType":null}', ""),
        (b'{"resultType":5}', ""),
        (b"[]", "complete"),
    ],
)
def test_the_kind_of_a_result(result: bytes, kind: str) -> None:
    assert envelope.result_type(result) == kind


@given(OBJECT, st.sampled_from([None, '{"a":1.0}']), st.booleans(), st.booleans())
def test_a_stamped_result_is_unstamped_again(
    data: str, meta: str | None, cached: bool, named: bool
) -> None:
    fields = jsonrpc.members(data.encode())
    fields.pop("_meta", None)
    if meta is not None:
        fields["_meta"] = msgspec.Raw(meta.encode())
    plain = jsonrpc.encode(fields)
    stamped = envelope.stamp_result(
        plain,
        "complete",
        ttl_ms=0 if cached else None,
        cache_scope="private" if cached else None,
        server_info=b'{"name":"s","version":"1"}' if named else b"",
    )
    found = jsonrpc.members(stamped)
    assert bytes(found["resultType"]) == b'"complete"'
    assert ("ttlMs" in found, "cacheScope" in found) == (cached, cached)
    assert (envelope.SERVER_KEY.encode() in stamped) == named
    assert envelope.unstamp_result(stamped) == plain


def test_what_a_result_says_already_is_kept() -> None:
    result = (
        b'{"resultType":"task","ttlMs":1.0,"cacheScope":"public",'
        b'"_meta":{"io.modelcontextprotocol/serverInfo":{}}}'
    )
    same = envelope.stamp_result(
        result, ttl_ms=5, cache_scope="private", server_info=b'{"name":"r"}'
    )
    assert same is result


@pytest.mark.parametrize("result", [b"[]", b"5", b"{"])
def test_what_is_no_result_is_left_alone(result: bytes) -> None:
    assert envelope.stamp_result(result, ttl_ms=1) is result
    assert envelope.unstamp_result(result) is result


def test_a_plain_result_is_not_written_anew() -> None:
    result = b'{ "content": [], "_meta": {} }'
    assert envelope.unstamp_result(result) is result


# --- subscriptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("subscription", [b"0", b"1.0", b'"\\u0061"'])
@pytest.mark.parametrize("params", [b"{}", b'{"uri":"a:b","_meta":{"x":1E5}}', b'{"x":1.0}'])
def test_a_notification_is_tagged_and_untagged(params: bytes, subscription: bytes) -> None:
    tagged = envelope.tag(params, subscription)
    assert envelope.SUBSCRIPTION_KEY.encode() in tagged
    assert envelope.untag(tagged) == (params, subscription)


def test_a_tag_is_replaced() -> None:
    assert envelope.untag(envelope.tag(envelope.tag(b"", b"1"), b"2")) == (b"{}", b"2")


@pytest.mark.parametrize("params", [b"", b"{}", b'{"_meta":{"x":1}}', b"[]"])
def test_what_has_no_tag(params: bytes) -> None:
    assert envelope.untag(params) == (params, b"")
