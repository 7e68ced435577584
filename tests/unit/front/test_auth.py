"""What a listener that asks for tokens answers, to agents of both eras."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from agent_kit import BASE, initialize, rpc
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from unit.front.auth_kit import (
    AUDIENCE,
    ISSUER,
    SUBJECT,
    Gated,
    Signer,
    bearer,
    by_file,
    open_gated,
    stateless,
)

from kars_router.config.auth import AgentAuth, Jwt
from kars_router.errors import ConfigError
from kars_router.front.auth import AgentGate
from kars_router.front.bearer import BadTokenError, take_authorization, token_in
from kars_router.front.exchange import Exchange
from kars_router.telemetry import Metrics
from kars_router.testing._asgi import discard, never

TOKEN = "s3cret-0123456789"
SHARED = AgentAuth(token_from_env="AGENT_TOKEN")
ENVIRON = {"AGENT_TOKEN": f" {TOKEN}\n"}
METADATA = f"{BASE}/.well-known/oauth-protected-resource"
REALM = 'Bearer realm="kars-router"'


def requests(path: str = "/mcp") -> dict[str, dict[str, Any]]:
    """One request of each kind, as arguments for an HTTP client."""
    usual = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    session = {**usual, "mcp-session-id": "abc"}
    found = {
        "initialize": {"method": "POST", "json": initialize(), "headers": usual},
        "call": {"method": "POST", "json": rpc("tools/list"), "headers": session},
        "stateless": {"method": "POST", **stateless()},
        "get": {"method": "GET", "headers": session},
        "delete": {"method": "DELETE", "headers": session},
        "put": {"method": "PUT", "headers": usual},
        "elsewhere": {"method": "GET", "url": f"{BASE}/nowhere"},
        "no-server": {"method": "POST", "url": f"{BASE}/mcp/none", **stateless()},
    }
    return {name: {"url": BASE + path, **request} for name, request in found.items()}


KINDS = sorted(requests())


async def send(kit: Gated, kind: str, token: str | None = None, **more: str) -> httpx.Response:
    request = requests()[kind]
    shown = bearer(token) if token is not None else {}
    request["headers"] = {**request.get("headers", {}), **shown, **more}
    return await kit.client.request(**request)


def said(response: httpx.Response) -> tuple[int, str | None, str]:
    """Status, challenge and message of a refusal; its form is checked."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"jsonrpc", "id", "error"}
    assert body["id"] is None
    assert len(response.content) < 300
    challenge = response.headers.get("www-authenticate")
    return response.status_code, challenge, body["error"]["message"]


async def test_without_settings_nothing_is_asked_for() -> None:
    async with open_gated(AgentAuth()) as kit:
        assert await kit.connect()
        assert (await kit.ask()).status_code == 200
        assert (await kit.ask("anything")).status_code == 200
        (who, *_), *_ = kit.operations.performed
        assert (who.subject, who.scopes, who.agent) == ("", (), "listener")
        assert (await kit.client.get(METADATA)).status_code == 404


class TestSharedToken:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_nothing_shown(self, kind: str) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            assert said(await send(kit, kind)) == (401, REALM, "a bearer token is needed")
            assert kit.bodies == [], "nothing of the body may be read"
            assert kit.refusals("no_token") == 1

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_bad_one_shown(self, kind: str) -> None:
        text = "the token is not the one that is asked for"
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            challenge = f'{REALM}, error="invalid_token", error_description="{text}"'
            assert said(await send(kit, kind, TOKEN[:-1])) == (401, challenge, text)
            assert kit.bodies == []
            assert kit.refusals("invalid_token") == 1

    async def test_the_right_one_lets_both_eras_in(self) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            session = await kit.connect(TOKEN)
            shown = bearer(TOKEN)
            listed = await kit.post(rpc("ping"), session, headers=shown)
            assert listed.json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
            deleted = await kit.client.delete(
                f"{BASE}/mcp", headers={"mcp-session-id": session, **shown}
            )
            assert deleted.status_code == 200
            assert (await kit.ask(TOKEN)).status_code == 200
            ((who, *_),) = kit.operations.performed
            assert (who.subject, who.agent) == ("", "listener"), "it names nobody"

    async def test_the_scheme_may_be_spelled_in_any_case(self) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            response = await send(kit, "initialize", authorization=f"bEARER  {TOKEN}")
            assert response.status_code == 200

    @pytest.mark.parametrize("path", ["/mcp?access_token=", "/mcp?token="])
    async def test_never_from_the_query(self, path: str) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            response = await kit.post(initialize(), path=path + TOKEN)
            assert said(response)[:2] == (401, REALM)

    async def test_never_from_the_body_or_another_header(self) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            elsewhere = {"x-authorization": f"Bearer {TOKEN}", "cookie": f"access_token={TOKEN}"}
            response = await kit.post(
                f"access_token={TOKEN}".encode(),
                headers={**elsewhere, "content-type": "application/x-www-form-urlencoded"},
            )
            assert said(response)[:2] == (401, REALM)

    async def test_two_headers_are_none_that_can_be_used(self) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            request = requests()["initialize"]
            pairs = [*request["headers"].items(), *[("authorization", f"Bearer {TOKEN}")] * 2]
            response = await kit.client.request(**{**request, "headers": pairs})
            text = "the Authorization header does not hold one bearer token"
            challenge = f'{REALM}, error="invalid_token", error_description="{text}"'
            assert said(response) == (401, challenge, text)

    async def test_another_scheme_is_no_token_shown(self) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            response = await send(kit, "initialize", authorization="Basic dTpw")
            assert said(response)[:2] == (401, REALM)

    async def test_a_page_and_a_wrong_host_are_refused_first(self) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            evil = await send(kit, "initialize", TOKEN, origin="https://evil.example")
            assert (evil.status_code, evil.headers.get("www-authenticate")) == (403, None)
            assert (await send(kit, "initialize", host="evil.example")).status_code == 421

    async def test_a_rotated_file_counts_at_once_and_the_old_token_for_nobody(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "token"
        file.write_text("old-token\n")
        async with open_gated(AgentAuth(token_from_file=file)) as kit:
            session = await kit.connect("old-token")
            # As Kubernetes does it, and also within one tick of the clock and in one place.
            file.write_text("new-token\n")
            assert said(await send(kit, "initialize", "old-token"))[0] == 401
            pong = await kit.post(rpc("ping"), session, headers=bearer("new-token"))
            assert pong.status_code == 200, "sessions stay"

    @pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe", b"x" * 20_000])
    async def test_a_file_that_holds_no_token_lets_nobody_in(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        file = tmp_path / "token"
        file.write_bytes(b"token")
        async with open_gated(AgentAuth(token_from_file=file)) as kit:
            file.unlink() if content is None else file.write_bytes(content)
            for token in ("token", "x" * 20_000, "two"):
                response = await send(kit, "initialize", token)
                # A listener need not take heads of more than 16 KiB.
                assert response.status_code in (401, 503, 431 if len(token) > 16_384 else 401)
            assert said(await send(kit, "initialize", "token")) == (
                503,
                None,
                "tokens cannot be checked at the moment; try again later",
            )
            assert (await send(kit, "initialize", "token")).headers["retry-after"] == "5"
            assert said(await send(kit, "initialize"))[0] == 401
            with pytest.raises(ConfigError, match=r"agentAuth\.tokenFromFile: .*token"):
                AgentGate(AgentAuth(token_from_file=file), Metrics())

    @pytest.mark.parametrize("environ", [{}, {"AGENT_TOKEN": ""}, {"AGENT_TOKEN": "a b"}])
    def test_a_variable_without_a_token_is_a_mistake(self, environ: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=r"agentAuth\.tokenFromEnv: the variable AGENT_TOKEN"):
            AgentGate(SHARED, Metrics(), environ=environ)

    async def test_a_pipe_does_not_stop_the_router(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with pytest.raises(ConfigError):
            AgentGate(AgentAuth(token_from_file=pipe), Metrics())


class TestJwt:
    async def test_nothing_shown(self, tmp_path: Path) -> None:
        auth = by_file(tmp_path / "keys", Signer(), scopes=("mcp:call", "mcp:list"))
        async with open_gated(auth) as kit:
            for kind in KINDS:
                where = f"{METADATA}/mcp/none" if kind == "no-server" else f"{METADATA}/mcp"
                challenge = f'{REALM}, resource_metadata="{where}", scope="mcp:call mcp:list"'
                assert said(await send(kit, kind))[:2] == (401, challenge), kind
            assert kit.bodies == []

    async def test_a_bad_one_shown(self, tmp_path: Path) -> None:
        signer = Signer()
        async with open_gated(by_file(tmp_path / "keys", signer)) as kit:
            text = "the token has expired"
            challenge = (
                f'{REALM}, error="invalid_token", error_description="{text}", '
                f'resource_metadata="{METADATA}/mcp"'
            )
            expired = signer.token(exp=1000)
            for kind in sorted({*KINDS} - {"no-server"}):
                assert said(await send(kit, kind, expired)) == (401, challenge, text), kind
            assert kit.bodies == []

    async def test_too_few_scopes(self, tmp_path: Path) -> None:
        signer = Signer()
        auth = by_file(tmp_path / "keys", signer, scopes=("a", "b"))
        async with open_gated(auth) as kit:
            text = "the token does not have the scopes that are needed"
            challenge = (
                f'{REALM}, error="insufficient_scope", error_description="{text}", '
                f'resource_metadata="{METADATA}/mcp", scope="a b"'
            )
            for kind in sorted({*KINDS} - {"no-server"}):
                token = signer.token(scope="a c")
                assert said(await send(kit, kind, token)) == (403, challenge, text), kind
            assert (await send(kit, "initialize", signer.token(scope="c b a"))).status_code == 200
            assert kit.refusals("insufficient_scope") == len(KINDS) - 1

    async def test_subject_and_scopes_reach_the_operations_in_both_eras(
        self, tmp_path: Path
    ) -> None:
        signer = Signer()
        async with open_gated(by_file(tmp_path / "keys", signer)) as kit:
            session = await kit.connect(signer.token())
            for scope in ("one", "two"):
                shown = bearer(signer.token(scope=scope))
                call = rpc("tools/call", {"name": "tool"})
                assert (await kit.post(call, session, headers=shown)).status_code == 200
                assert (await kit.ask(signer.token(scope=scope))).status_code == 200
            seen = [(who.subject, who.scopes) for who, *_ in kit.operations.performed]
            assert seen == [(SUBJECT, (s,)) for s in ("one", "one", "two", "two")]
            assert kit.operations.performed[1][0].agent == f"subject:{ISSUER} {SUBJECT}"

    async def test_a_host_that_could_break_the_header_is_not_repeated(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", Signer())) as kit:
            response = await send(kit, "initialize", host='localhost:1", error="x')
            assert said(response)[:2] == (401, REALM)

    async def test_a_path_that_could_break_the_header_is_not_repeated(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", Signer())) as kit:
            response = await kit.client.get(f"{BASE}/mcp/%22%2C%20error=%22x%0d%0ax:y")
            assert said(response)[1] == f'{REALM}, resource_metadata="{METADATA}/mcp"'


class TestMetadata:
    AS_CONFIGURED = (
        ("", AUDIENCE),
        ("/", AUDIENCE),
        ("/mcp", AUDIENCE),
        ("/mcp/", AUDIENCE),
        ("/mcp/box", AUDIENCE),  # a client takes the name of what its own address lies under
        ("/mcp/none", AUDIENCE),  # nobody may find out what there is
    )

    @pytest.mark.parametrize(("path", "resource"), AS_CONFIGURED)
    async def test_served_without_a_token(self, tmp_path: Path, path: str, resource: str) -> None:
        auth = by_file(tmp_path / "keys", Signer(), scopes=("mcp:call",))
        async with open_gated(auth) as kit:
            response = await kit.client.get(METADATA + path)
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            assert response.json() == {
                "resource": resource,
                "authorization_servers": [ISSUER],
                "scopes_supported": ["mcp:call"],
                "bearer_methods_supported": ["header"],
                "resource_name": "kars-router",
            }

    @pytest.mark.parametrize(
        ("audience", "path", "resource"),
        [
            ((AUDIENCE, f"{AUDIENCE}/box"), "/mcp/box", f"{AUDIENCE}/box"),
            ((AUDIENCE, f"{AUDIENCE}/bo"), "/mcp/box", AUDIENCE),
            ((BASE,), "/mcp", BASE),
            (("api://router",), "/mcp/box", f"{AUDIENCE}/box"),
            (("api://router",), "", AUDIENCE),
            (
                ("router", "http://[", "https://elsewhere.example/mcp"),
                "",
                "https://elsewhere.example/mcp",
            ),
        ],
    )
    async def test_the_resource_is_one_that_tokens_are_taken_for(
        self, tmp_path: Path, audience: tuple[str, ...], path: str, resource: str
    ) -> None:
        auth = by_file(tmp_path / "keys", Signer(), audience=audience)
        async with open_gated(auth) as kit:
            found = (await kit.client.get(METADATA + path)).json()
            assert found["resource"] == resource
            assert "scopes_supported" not in found

    async def test_behind_a_proxy_the_operator_knows_the_scheme(self, tmp_path: Path) -> None:
        auth = by_file(tmp_path / "keys", Signer(), audience=("https://router.example/mcp",))
        async with open_gated(auth, hosts=["router.example"]) as kit:
            response = await send(kit, "initialize", host="Router.Example")
            where = "https://router.example/.well-known/oauth-protected-resource/mcp"
            assert said(response)[1] == f'{REALM}, resource_metadata="{where}"'

    @pytest.mark.parametrize("path", ["/mcp/Box!", "x", "/other", "/mcp/a/b"])
    async def test_no_other_path_is_open(self, tmp_path: Path, path: str) -> None:
        async with open_gated(by_file(tmp_path / "keys", Signer())) as kit:
            assert said(await kit.client.get(METADATA + path))[0] == 401

    async def test_get_only_and_only_for_jwt(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", Signer())) as kit:
            response = await kit.client.post(METADATA)
            assert (response.status_code, response.headers["allow"]) == (405, "GET")
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            assert said(await kit.client.get(METADATA))[:2] == (401, REALM)

    async def test_pages_are_kept_out_here_too(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", Signer())) as kit:
            response = await kit.client.get(METADATA, headers={"origin": "https://evil.example"})
            assert response.status_code == 403


class TestChangedSettings:
    async def test_they_count_from_the_next_request_on(self, tmp_path: Path) -> None:
        async with open_gated(SHARED, environ={**ENVIRON, "OTHER": "other"}) as kit:
            session = await kit.connect(TOKEN)
            kit.put_in_force(AgentAuth(token_from_env="OTHER"))
            assert said(await send(kit, "initialize", TOKEN))[0] == 401
            pong = await kit.post(rpc("ping"), session, headers=bearer("other"))
            assert pong.status_code == 200, "sessions stay"
            kit.put_in_force(AgentAuth())
            assert (await kit.post(rpc("ping"), session)).status_code == 200
            signer = Signer()
            kit.put_in_force(by_file(tmp_path / "keys", signer))
            assert said(await send(kit, "initialize", "other"))[0] == 401
            assert (await kit.ask(signer.token())).status_code == 200

    async def test_what_cannot_be_used_leaves_the_old_ones_in_force(self, tmp_path: Path) -> None:
        async with open_gated(SHARED, environ=ENVIRON) as kit:
            with pytest.raises(ConfigError, match="tokenFromFile"):
                kit.put_in_force(AgentAuth(token_from_file=tmp_path / "none"))
            jwt = Jwt(issuer=ISSUER, audience=("a",), jwks_file=tmp_path / "none")
            with pytest.raises(ConfigError, match=r"jwt\.jwksFile"):
                kit.put_in_force(AgentAuth(jwt=jwt))
            assert kit.gate.auth == SHARED
            assert await kit.connect(TOKEN)

    @pytest.mark.parametrize(
        ("key", "settings"),
        [
            ("issuer", {"issuer": "http://idp.example"}),
            ("jwksUrl", {"issuer": ISSUER, "jwks_url": "http://10.0.0.1/keys"}),
            ("jwksUrl", {"issuer": ISSUER, "jwks_url": "ws://127.0.0.1/keys"}),
        ],
    )
    def test_keys_in_plain_text_are_refused(self, key: str, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=rf"agentAuth\.jwt\.{key}: must begin with https://"):
            AgentGate(AgentAuth(jwt=Jwt(audience=("a",), **settings)), Metrics())


async def test_a_flood_of_refusals_is_one_line(autojump_clock: Any) -> None:
    async with open_gated(SHARED, environ=ENVIRON) as kit:
        with capture_logs() as logs:
            for _ in range(50):
                await send(kit, "initialize", "wrong")
            assert [line["event"] for line in logs] == ["agent_refused"]
            await trio.sleep(10)
            await send(kit, "initialize", "wrong")
        assert [(line["reason"], line["more"]) for line in logs] == [
            ("invalid_token", 0),
            ("invalid_token", 49),
        ]


anything = st.one_of(
    st.binary(max_size=80),
    st.binary(max_size=80).map(lambda b: b"Bearer " + b),
    st.from_regex(rb"[Bb]earer[ \t]{0,3}[A-Za-z0-9._~+/ ,=-]{0,60}", fullmatch=True),
    # What could be a JWT.
    st.lists(st.from_regex(rb"[A-Za-z0-9_-]{0,40}", fullmatch=True), max_size=6).map(
        lambda parts: b"Bearer " + b".".join(parts)
    ),
)


async def test_a_request_loses_its_token_before_anybody_reads_it() -> None:
    pairs = [(b"authorization", b"Bearer a"), (b"x-other", b"b"), (b"authorization", b"Basic c")]
    scope = {"method": "POST", "path": "/mcp", "headers": pairs}
    exchange = Exchange(scope, never, discard)
    assert take_authorization(exchange) == b"Bearer a, Basic c"
    assert exchange.scope["headers"] == [(b"x-other", b"b")]
    assert (exchange.headers, exchange.header(b"authorization")) == ({b"x-other": b"b"}, "")
    assert scope["headers"] == pairs, "the server's own value stays as it is"
    assert take_authorization(exchange) is None


@given(anything)
def test_any_header_is_a_token_none_or_a_bad_one(shown: bytes) -> None:
    try:
        token = token_in(shown)
    except BadTokenError:
        assert shown.strip(b" \t").lower().startswith(b"bearer")
    else:
        assert token is None or token.encode() in shown


async def test_no_header_breaks_anything_or_is_logged(tmp_path: Path) -> None:
    signer = Signer()
    headers: list[bytes] = []

    @given(anything)
    def keep(header: bytes) -> None:
        headers.append(header)

    keep()
    good = signer.token()
    head, claims, signature = good.split(".")
    mixed = ([head, claims, ""], [head, "", signature], ["", claims, signature], [head] * 3)
    headers += [f"Bearer {'.'.join(parts)}".encode() for parts in mixed]
    headers += [f"Bearer {good[:n]}".encode() for n in range(len(good) - 40, len(good))]
    headers += [b"Bearer " + b"a" * 40_000, b"Bearer " + b"." * 10_000]
    async with open_gated(by_file(tmp_path / "keys", signer)) as kit:
        with capture_logs() as logs:
            for header in headers:
                request = requests()["initialize"]
                request["headers"] = [
                    *((k.encode(), v.encode()) for k, v in request["headers"].items()),
                    (b"authorization", header),
                ]
                try:
                    response = await kit.client.request(**request)
                except httpx.LocalProtocolError:
                    continue  # no header that this client would send over a socket
                if not response.content:
                    # The listener's word: control characters, or more than it need take.
                    assert response.status_code == (431 if len(header) > 16_384 else 400), header
                    continue
                assert said(response)[0] == 401, header
                for part in header.split():
                    if len(part) > 8:
                        assert part not in response.content
                        assert part.decode("latin-1") not in response.headers["www-authenticate"]
        written = repr(logs)
        for header in headers:
            for part in header.split():
                assert len(part) < 9 or part.decode("latin-1") not in written
