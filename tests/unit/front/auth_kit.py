"""A listener that asks for tokens, with agents of both eras, and an issuer of tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import jwt
import msgspec
import trio
from agent_kit import BASE, BOTH, Visitor, initialize
from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from serving_kit import open_client
from unit.front.handshake_kit import LIFETIME, Upstream
from unit.front.stateless_kit import ScriptedOperations, fixed, headers, meta

from kars_router.config.auth import AgentAuth, Jwt
from kars_router.front.agents import AgentRegistry
from kars_router.front.asgi import AgentApp
from kars_router.front.auth import AgentGate
from kars_router.front.exchange import Exchange, Receive, Scope, Send, accept_lifespan
from kars_router.front.guard import Guard
from kars_router.front.identity import Identities
from kars_router.front.keyfetch import Transports
from kars_router.front.legacy import LegacyServer
from kars_router.front.parking import ParkingLot
from kars_router.front.sealing import Sealer
from kars_router.front.stateless import StatelessServer
from kars_router.session.records import Records
from kars_router.telemetry import Metrics
from kars_router.testing import AsgiBridge
from kars_router.transports.http import TrioTransport

KEY = b"k" * 32
ISSUER = "http://127.0.0.1:9999/tenant"
AUDIENCE = f"{BASE}/mcp"
SUBJECT = "system:serviceaccount:demo:agent"


def new_key(algorithm: str, bits: int = 2048) -> Any:
    """A private key for an algorithm."""
    if algorithm in ("RS256", "PS256"):
        return rsa.generate_private_key(65537, bits)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP384R1() if algorithm == "ES384" else ec.SECP256R1())


@frozen
class Signer:
    """A key of an issuer.

    Attributes:
        kid: its name; None for a key without one.
    """

    kid: str | None = "one"
    algorithm: str = "ES256"
    key: Any = field()

    @key.default
    def _new(self) -> Any:
        return new_key(self.algorithm)

    def jwk(self, **more: Any) -> dict[str, Any]:
        """Its public half, as a member of a JWKS."""
        made = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.key.public_key(), as_dict=True)
        named = {} if self.kid is None else {"kid": self.kid}
        return {name: made[name] for name in made if name != "key_ops"} | named | more

    def token(self, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good unless these claims, or header members, change that.

        A claim that is None is left out.
        """
        now = time.time()
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "iat": now, "exp": now + 600}
        whole = {name: value for name, value in (usual | claims).items() if value is not None}
        named = {} if self.kid is None else {"kid": self.kid}
        # As it stands, since the library refuses to write what it should be able to refuse.
        return jwt.PyJWS().encode(
            msgspec.json.encode(whole),
            self.key,
            algorithm=self.algorithm,
            headers={**named, **(header or {})},
        )


def jwks(*signers: Signer) -> bytes:
    """The public halves of keys."""
    return msgspec.json.encode({"keys": [signer.jwk() for signer in signers]})


@define
class Idp:
    """An authorization server, as far as one that checks tokens needs it.

    Attributes:
        url: where it is, without a path.
        signers: its keys.
        documents: what is at each path; what is not there is not found.
        asked: the paths that were asked for, in order.
        wait: seconds until it answers; `float("inf")` for never.
        status: of all answers, if not 200.
    """

    url: str = "http://127.0.0.1:9999"
    signers: list[Signer] = field(factory=lambda: [Signer()])
    documents: dict[str, Any] = field(factory=dict)
    asked: list[str] = field(factory=list)
    wait: float = 0.0
    status: int = 200

    @property
    def issuer(self) -> str:
        return f"{self.url}/tenant"

    def publish(self, path: str = "/.well-known/oauth-authorization-server/tenant") -> None:
        """Puts its metadata somewhere."""
        self.documents[path] = {"issuer": self.issuer, "jwks_uri": f"{self.url}/keys"}

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        exchange = Exchange(scope, receive, send)
        self.asked.append(exchange.path)
        await trio.sleep(self.wait)
        document: Any = self.documents.get(exchange.path)
        if exchange.path == "/keys" and document is None:
            document = jwks(*self.signers)
        if self.status != 200 or document is None:
            await exchange.respond(404 if self.status == 200 else self.status)
            return
        body = document if isinstance(document, bytes) else msgspec.json.encode(document)
        await exchange.respond(200, body)


def by_file(path: Path, *signers: Signer, **more: Any) -> AgentAuth:
    """Settings for tokens of the issuer, whose keys are in a file that this writes."""
    path.write_bytes(jwks(*signers))
    settings: dict[str, Any] = {"issuer": ISSUER, "audience": (AUDIENCE,), "jwks_file": path}
    return AgentAuth(jwt=Jwt(**settings | more))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def stateless(
    params: Mapping[str, Any] | None = None,
    *,
    capabilities: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A tools/call of the stateless era, as arguments for an HTTP client.

    Args:
        params: its params beside the tool's name.
        capabilities: what it declares.
        extra: further members of its `_meta`.
    """
    method = "tools/call"
    whole = {"name": "tool", **(params or {}), "_meta": meta(capabilities, **(extra or {}))}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": whole}
    sent = {"accept": BOTH, "content-type": "application/json", **headers(method, whole)}
    return {"content": msgspec.json.encode(message), "headers": sent}


@define(kw_only=True)
class Gated(Visitor):
    """A listener and an HTTP client of it."""

    gate: AgentGate
    operations: ScriptedOperations
    agents: AgentRegistry
    lot: ParkingLot
    metrics: Metrics
    app: AgentApp
    bodies: list[int]

    def put_in_force(self, auth: AgentAuth) -> None:
        """As a reload does it."""
        self.gate.adopt(self.gate.prepare(auth))

    async def connect(self, token: str | None = None) -> str:
        """The id of a new session."""
        shown = bearer(token) if token is not None else {}
        response = await self.post(initialize(), headers=shown)
        assert response.status_code == 200, response.text
        return response.headers["mcp-session-id"]

    async def ask(
        self, token: str | None = None, path: str = "/mcp", **more: Any
    ) -> httpx.Response:
        """A request of the stateless era."""
        request = stateless(**more)
        shown = bearer(token) if token is not None else {}
        request["headers"] |= shown
        return await self.client.post(BASE + path, **request)

    async def delete(self, session: str, token: str) -> httpx.Response:
        """Ends a session."""
        shown = {"mcp-session-id": session, **bearer(token)}
        return await self.client.delete(f"{BASE}/mcp", headers=shown)

    def refusals(self, reason: str) -> float:
        name = "kars_agent_refusals_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


@asynccontextmanager
async def open_gated(
    auth: AgentAuth,
    *,
    idp: Idp | None = None,
    environ: Mapping[str, str] | None = None,
    hosts: Sequence[str] = (),
    real: bool = False,
) -> AsyncIterator[Gated]:
    """Runs a listener.

    Args:
        auth: what it asks for.
        idp: where it fetches keys.
        environ: its environment.
        hosts: accepted beside loopback.
        real: whether it fetches keys over the network.
    """
    metrics, records = Metrics(), Records(None, LIFETIME)
    upstream = Upstream(metrics, records)
    upstream.servers["box"] = _box()
    operations = ScriptedOperations()
    operations.handlers["tools/call"] = fixed({"content": []})
    agents = AgentRegistry(
        Sealer(KEY),
        metrics,
        limit=64,
        idle=3600.0,
        lifetime=LIFETIME,
        has_ended=records.has_ended,
        on_end=upstream.end_agent,
    )
    identities = Identities(
        upstream.join, upstream.end_agent, limit=64, idle=3600.0, lifetime=LIFETIME, others=int
    )
    lot = ParkingLot(KEY, limit=64, seconds=600.0)
    bodies: list[int] = []
    async with trio.open_nursery() as nursery:
        issuer = AsgiBridge((idp or Idp()).app, nursery)
        transports: Transports = TrioTransport if real else lambda _: issuer
        gate = AgentGate(auth, metrics, transports=transports, environ=environ or {})
        legacy = LegacyServer(upstream, agents, metrics, operations=operations, version="1")
        app = AgentApp(
            legacy,
            upstream,
            Guard(hosts),
            body_limit=1 << 20,
            stateless=StatelessServer(
                upstream, operations, metrics, identities=identities, lot=lot, version="1"
            ),
            gate=gate,
        )

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def watched() -> Any:
                bodies.append(1)
                return await receive()

            await app(scope, watched, send)

        await nursery.start(legacy.run)
        await nursery.start(lot.run)
        nursery.start_soon(gate.run)
        async with open_client(counted, nursery) as client:
            yield Gated(
                client,
                gate=gate,
                operations=operations,
                agents=agents,
                lot=lot,
                metrics=metrics,
                app=app,
                bodies=bodies,
            )
        nursery.cancel_scope.cancel()


def _box() -> Any:
    """As much of a server as the front looks at before it does anything."""
    return SimpleNamespace(
        catalogue=SimpleNamespace(plans={}), end_agent=lambda *_: None, agent_joined=lambda *_: None
    )
