"""Which requests are of the stateless era, and in which order what is wrong with them is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from agent_kit import BASE
from trio.testing import MockClock
from unit.front.stateless_kit import ELSEWHERE, PREFIX, REVISION, fixed, meta, open_rig

from kars_router.model import Tool
from kars_router.wire import jsonrpc, params

VERSION = f"{PREFIX}protocolVersion"
DECLARED = f"{PREFIX}clientCapabilities"
GOOD = {"mcp-protocol-version": REVISION, "mcp-method": "tools/list"}


def listing(ident: Any = 7, method: str = "tools/list", *, changed: Any = None) -> dict[str, Any]:
    """A request for tools; a key of the envelope that is changed to None is left out."""
    whole = {**meta(), **(changed or {})}
    return {
        "jsonrpc": "2.0",
        "id": ident,
        "method": method,
        "params": {"_meta": {key: value for key, value in whole.items() if value is not None}},
    }


def error_of(response: httpx.Response) -> tuple[int, int]:
    return response.status_code, response.json()["error"]["code"]


def _another_revision(body: dict[str, Any], sent: list[tuple[str, str]]) -> None:
    body["params"]["_meta"][VERSION] = "2099-01-01"
    sent[0] = ("mcp-protocol-version", "2099-01-01")


def _another_method(body: dict[str, Any], sent: list[tuple[str, str]]) -> None:
    body["method"] = "tools/unknown"
    if sent[1] == ("mcp-method", "tools/list"):
        sent[1] = ("mcp-method", "tools/unknown")


# What is wrong, from the first check to the last: a request that is wrong in two ways gets the
# error of the earlier one.
LADDER: list[tuple[str, Callable[[dict[str, Any], list[tuple[str, str]]], None], int, int]] = [
    (
        "a routing header twice",
        lambda _, sent: sent.append(("mcp-method", "tools/list")),
        400,
        -32020,
    ),
    ("no capabilities", lambda body, _: body["params"]["_meta"].pop(DECLARED), 400, -32602),
    (
        "another method in the header",
        lambda _, sent: sent.__setitem__(1, ("mcp-method", "tools/call")),
        400,
        -32020,
    ),
    ("another revision", _another_revision, 400, -32022),
    ("an unknown method", _another_method, 404, -32601),
]


@pytest.mark.parametrize("later", range(len(LADDER)))
@pytest.mark.parametrize("first", range(len(LADDER)))
async def test_the_first_thing_that_is_wrong_is_said(
    autojump_clock: MockClock, first: int, later: int
) -> None:
    first, later = min(first, later), max(first, later)
    body, sent = listing(), list(GOOD.items())
    for _, spoil, _, _ in (LADDER[later], LADDER[first]) if first != later else (LADDER[first],):
        spoil(body, sent)
    async with open_rig() as rig:
        response = await rig.raw(body, sent)
        assert error_of(response) == LADDER[first][2:]
        assert response.json()["id"] == 7


@pytest.mark.parametrize("ident", [0, "0", "a b", 1.5, 2**70, ""])
async def test_errors_carry_the_id_of_the_request(autojump_clock: MockClock, ident: Any) -> None:
    async with open_rig() as rig:
        for body in (listing(ident, changed={DECLARED: None}), listing(ident, "nonsense")):
            sent = {**GOOD, "mcp-method": body["method"]}
            response = await rig.raw(body, sent)
            assert response.json()["id"] == ident
            assert type(response.json()["id"]) is type(ident)


async def test_a_revision_that_is_not_supported_is_told_which_is(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        body = listing(changed={VERSION: "2025-11-25"})
        sent = {**GOOD, "mcp-protocol-version": "2025-11-25"}
        response = await rig.raw(body, sent)
        assert error_of(response) == (400, -32022)
        assert response.json()["error"]["data"] == {
            "supported": [REVISION],
            "requested": "2025-11-25",
        }


@pytest.mark.parametrize(
    "method",
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "x"],
)
async def test_methods_that_this_era_does_not_have_are_404(
    autojump_clock: MockClock, method: str
) -> None:
    async with open_rig() as rig:
        response = await rig.post(method)
        assert error_of(response) == (404, jsonrpc.METHOD_NOT_FOUND)
        if method == "initialize":
            assert REVISION in response.json()["error"]["message"]


async def test_what_is_not_offered_does_not_exist(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.offered = {"tools": {}, "resources": {}}
        for method in ("prompts/list", "prompts/get", "resources/list", "resources/read"):
            rig.operations.handlers[method] = fixed({})
            response = await rig.post(method, {"name": "n", "uri": "u"})
            assert response.status_code == (404 if method.startswith("prompts") else 200)
        assert len(rig.operations.performed) == 2


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, "tools/list"),
        ({"mcp-protocol-version": REVISION}, "the header is enough"),
        ({"mcp-protocol-version": "2099-01-01"}, "an unknown revision, too"),
        ({"mcp-protocol-version": "nonsense"}, "and what is none"),
    ],
)
async def test_one_sign_of_this_era_is_enough(
    autojump_clock: MockClock, wanted: Mapping[str, str] | None, found: str
) -> None:
    async with open_rig() as rig:
        plain = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        response = await rig.raw(listing() if wanted is None else plain, wanted or {})
        # Not silently taken for the other era: what is missing is said.
        assert response.status_code == 400, found
        assert response.json()["error"]["code"] in (-32020, -32602)


async def test_an_escaped_key_is_a_sign_too(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        body = jsonrpc.encode(listing()).replace(b"protocolVersion", rb"\u0070rotocolVersion")
        assert error_of(await rig.raw(body)) == (400, -32020)


@pytest.mark.parametrize("revision", [None, "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
async def test_requests_without_a_sign_are_of_the_other_era(
    autojump_clock: MockClock, revision: str | None
) -> None:
    sent = {} if revision is None else {"mcp-protocol-version": revision}
    async with open_rig() as rig:
        for body in (
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "initialize",
                "params": {"protocolVersion": REVISION},
            },
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/list",
                "params": {"_meta": {"a": "\u2028"}},
            },
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            [{"jsonrpc": "2.0", "id": 1, "method": "ping"}],
            b"nonsense with protocolVersion",
        ):
            assert (await rig.raw(body, sent)).status_code == ELSEWHERE


async def test_a_header_of_the_other_era_does_not_hide_an_envelope(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        sent = {**GOOD, "mcp-protocol-version": "2025-11-25"}
        assert error_of(await rig.raw(listing(), sent)) == (400, -32020)


async def test_session_ids_and_event_ids_are_ignored(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/list"] = fixed({"tools": []})
        sent = {"mcp-session-id": "nobody's", "last-event-id": "7"}
        response = await rig.post("tools/list", headers=sent)
        assert response.status_code == 200
        assert "mcp-session-id" not in response.headers


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_with_a_session_only_a_known_revision_is_a_sign(
    autojump_clock: MockClock, method: str
) -> None:
    """Else it is the other side's to say that it does not know the revision; it has no others."""
    async with open_rig() as rig:
        sent = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "mcp-session-id": "nobody's",
        }
        theirs, ours = (ELSEWHERE, 400) if method == "POST" else (405, 405)
        for revision, status in (("2026-06-18", theirs), (REVISION, ours)):
            sent["mcp-protocol-version"] = revision
            body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
            url = f"{BASE}/mcp"
            response = await rig.client.request(method, url, headers=sent, content=body)
            assert response.status_code == status


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_there_is_nothing_but_post(autojump_clock: MockClock, method: str) -> None:
    async with open_rig() as rig:
        sent = {
            "accept": "text/event-stream",
            "mcp-protocol-version": REVISION,
            "mcp-session-id": "nobody's",
        }
        response = await rig.client.request(method, f"{BASE}/mcp", headers=sent)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_notifications_are_accepted_and_do_nothing(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        response = await rig.raw(body, {"mcp-protocol-version": REVISION})
        assert (response.status_code, response.content) == (202, b"")
        assert not rig.operations.performed


@pytest.mark.parametrize(
    "body",
    [
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": ""}},
        [listing()],
        [],
        {"jsonrpc": "1.0", "id": 1, "method": "tools/list"},
    ],
)
async def test_what_is_no_request_is_refused(autojump_clock: MockClock, body: Any) -> None:
    async with open_rig() as rig:
        assert error_of(await rig.raw(body, GOOD)) == (400, jsonrpc.INVALID_REQUEST)


async def test_what_is_no_json_is_a_parse_error(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        assert error_of(await rig.raw(b"{", GOOD)) == (400, jsonrpc.PARSE_ERROR)


@pytest.mark.parametrize("depth", [10, 100, 300, 500, 700, 900, 1100, 50_000])
async def test_nesting_of_any_depth_gets_an_answer(autojump_clock: MockClock, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = fixed({"content": []})
        envelope = jsonrpc.encode(meta(mark=0))
        for whole in (
            b'{"name":"tool","arguments":%b,"_meta":%b}' % (deep, envelope),
            b'{"name":"tool","_meta":%b}' % envelope.replace(b'"mark":0', b'"mark":%b' % deep),
            b'{"name":"tool","_meta":%b}' % envelope.replace(b"{}", deep),
        ):
            body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%b}' % whole
            sent = {**GOOD, "mcp-method": "tools/call", "mcp-name": "tool"}
            response = await rig.raw(body, sent)
            assert response.json()["jsonrpc"] == "2.0"
            if response.status_code != 200:
                assert depth > 300
                assert response.status_code == 400


async def test_headers_of_params_are_held_against_the_arguments(
    autojump_clock: MockClock,
) -> None:
    schema = {"properties": {"tenant": {"type": "string", "x-mcp-header": "Tenant"}}}
    tool = Tool("box", "own", "box__own", {"inputSchema": schema}, b"", b"")
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = fixed({"content": []})
        rig.operations.tools["tool"] = tool
        rig.plans["own"] = params.plan(schema)
        call = {"name": "tool", "arguments": {"tenant": "ä"}}
        for value, status in (("=?base64?w6Q=?=", 200), ("b", 400), (None, 400)):
            sent = {"mcp-param-tenant": value}
            response = await rig.post("tools/call", call, headers=sent)
            assert response.status_code == status
            if status == 400:
                assert response.json()["error"]["code"] == -32020
        assert len(rig.operations.performed) == 1
        # Other tools, and those that are not known yet, want nothing.
        assert (await rig.post("tools/call", {**call, "name": "other"})).status_code == 200


async def test_while_draining_nothing_new_is_begun(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/list"] = fixed({"tools": []})
        rig.operations.accepting = False
        for method in ("tools/list", "server/discover", "subscriptions/listen"):
            response = await rig.post(method, {"notifications": {}}, ident="x")
            assert response.status_code == 503
            assert response.json()["id"] == "x"
            assert response.json()["error"]["code"] == jsonrpc.REFUSED
        assert not rig.operations.performed


async def test_errors_of_servers_do_not_look_like_our_own(autojump_clock: MockClock) -> None:
    """A 404 would say that there is no such method here, and others that the envelope is wrong."""
    async with open_rig() as rig:
        for code, status in (
            (-32602, 200),
            (-32601, 200),
            (-32020, 200),
            (-32022, 200),
            (-32021, 400),
            (-32603, 200),
            (-32002, 200),
            (5, 200),
        ):
            error = jsonrpc.encode({"code": code, "message": "m", "data": {"kept": 1}})
            rig.operations.handlers["tools/call"] = fixed(error=error)
            response = await rig.post("tools/call", {"name": "tool"})
            assert error_of(response) == (status, code)
            assert jsonrpc.encode(response.json()["error"]) == error


@pytest.mark.parametrize("session", [None, "nobody's"])
@pytest.mark.parametrize(
    ("revision", "sent", "code"),
    [
        (REVISION, (), -32020),
        (REVISION, (REVISION, REVISION), -32020),
        ("2027-01-01", ("2027-01-01",), -32022),
        ("2027-01-01", ("2027-01-01", REVISION), -32020),
    ],
)
async def test_a_session_id_is_ignored_whatever_the_header_says(
    autojump_clock: MockClock,
    session: str | None,
    revision: str,
    sent: tuple[str, ...],
    code: int,
) -> None:
    pairs = [("mcp-method", "tools/list"), *(("mcp-protocol-version", one) for one in sent)]
    if session is not None:
        pairs.append(("mcp-session-id", session))
    async with open_rig() as rig:
        response = await rig.raw(listing(changed={VERSION: revision}), pairs)
        assert error_of(response) == (400, code)
        assert response.json()["id"] == 7


async def test_strangers_of_the_other_era_are_still_refused(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        plain = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        for sent in ({}, {"mcp-protocol-version": "2025-11-25"}):
            response = await rig.raw(plain, {"mcp-session-id": "nobody's", **sent})
            assert error_of(response) == (404, jsonrpc.INVALID_REQUEST)


async def test_capabilities_that_cannot_be_read_are_refused(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/list"] = fixed({"tools": []})
        body = jsonrpc.encode(listing(changed={DECLARED: {"experimental": 0}}))
        response = await rig.raw(body.replace(b'"experimental":0', b'"experimental":1e400'), GOOD)
        assert error_of(response) == (400, jsonrpc.INVALID_PARAMS)
        assert response.json()["id"] == 7
        assert not rig.operations.performed
        assert (len(rig.identities), rig.operations.unsent) == (0, 0)
