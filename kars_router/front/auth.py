"""Who may talk to the agents' listener: nobody without the token that the configuration asks for.

Owns what a request is answered that shows no good token, and which settings are in force. Must not
know MCP, nor JWT and its library: what checks a JWT is imported when one is asked for.

Source: RFC 6750, section 3; RFC 9728; MCP 2026-07-28 "Authorization / Error Handling".
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio
from attrs import define, field, frozen

from kars_router.config.auth import AgentAuth, Jwt
from kars_router.errors import ConfigError
from kars_router.front import metadata
from kars_router.front.bearer import BadTokenError, Challenge, UncheckableError, token_in
from kars_router.front.exchange import JSON, Exchange, Header
from kars_router.front.files import WatchedFile
from kars_router.front.principal import NOBODY, Principal
from kars_router.telemetry import Metrics, log
from kars_router.transports.http import TrioTransport
from kars_router.wire import jsonrpc

if TYPE_CHECKING:
    from kars_router.front.keyfetch import Transports

T = TypeVar("T")

_TOKEN_BYTES: Final = 16 * 1024
_JWKS_BYTES: Final = 256 * 1024
_LOG_SECONDS: Final = 10.0
_RETRY: Final[Header] = (b"retry-after", b"5")
_ALLOW: Final[Header] = (b"allow", b"GET")


class Verifier(Protocol):
    """Knows good tokens."""

    async def verify(self, token: str) -> Principal:
        """Whom a token names.

        Raises:
            BadTokenError: it is not good.
            UncheckableError: that cannot be found out now.
        """
        ...

    async def run(self) -> None:
        """Keeps up to date what that takes, until cancelled."""
        ...


@define(eq=False)
class SharedToken:
    """The one token that all agents have; it names nobody.

    Attributes:
        read: returns the token as it is now; raises UncheckableError.
    """

    read: Callable[[], bytes] = field(repr=False)

    async def verify(self, token: str) -> Principal:
        """See `Verifier.verify`."""
        await trio.lowlevel.checkpoint()
        # Digests are equally long, so that the time of the comparison does not tell the length.
        pair = [hashlib.sha256(each).digest() for each in (token.encode(), self.read())]
        if not hmac.compare_digest(*pair):
            raise BadTokenError("the token is not the one that is asked for")
        return NOBODY

    async def run(self) -> None:
        """See `Verifier.run`; there is nothing to do."""
        await trio.sleep_forever()


@frozen
class Prepared:
    """Settings that can be put in force, and what knows good tokens then."""

    auth: AgentAuth
    verifier: Verifier | None


class AgentGate:
    """Lets requests of agents in, or refuses them.

    Args:
        auth: what agents have to show.
        metrics: where refusals are counted.
        transports: makes the transport for a URL that keys are fetched from.
        environ: the environment.

    Attributes:
        auth: the settings in force.

    Raises:
        ConfigError: what the settings name cannot be used.
    """

    def __init__(
        self,
        auth: AgentAuth,
        metrics: Metrics,
        *,
        transports: Transports = TrioTransport,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.auth = auth
        self._metrics = metrics
        self._transports = transports
        self._environ = environ
        self._verifier = self._make(auth)
        self._changed = trio.Event()
        self._logged: dict[str, tuple[float, int]] = {}

    def prepare(self, auth: AgentAuth) -> Prepared | None:
        """Makes other settings ready to be put in force; changes nothing.

        Returns:
            what `adopt` takes; None if these are in force already.

        Raises:
            ConfigError: what they name cannot be used.
        """
        return None if auth == self.auth else Prepared(auth, self._make(auth))

    def adopt(self, prepared: Prepared | None) -> None:
        """Puts settings in force, from the next request on; sessions stay."""
        if prepared is None:
            return
        self.auth, self._verifier = prepared.auth, prepared.verifier
        self._changed.set()
        log().info("agent_auth_changed", kind=_kind(self.auth))

    async def run(self) -> None:
        """Keeps what the settings in force need up to date, until cancelled."""
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                if self._verifier is not None:
                    nursery.start_soon(self._verifier.run)
                await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def admit(self, exchange: Exchange, shown: bytes | None) -> bool:
        """Answers a request that may not come in, or that only asks what it takes.

        Args:
            exchange: the request, of which nothing but the head was read; learns who makes it.
            shown: what its Authorization header held; None if it had none.

        Returns:
            whether it may come in.
        """
        verifier, settings = self._verifier, self.auth.jwt
        if verifier is None:
            return True
        if settings is not None and (about := metadata.is_about(exchange.path)) is not None:
            await _describe(exchange, about, settings)
            return False
        try:
            token = token_in(shown)
            if token is None:
                await self._refuse(exchange, 401, "", "a bearer token is needed")
                return False
            principal = await verifier.verify(token)
        except BadTokenError as error:
            await self._refuse(exchange, 401, "invalid_token", error.reason)
            return False
        except UncheckableError as error:
            self._note("uncheckable", problem=str(error))
            text = "tokens cannot be checked at the moment; try again later"
            await exchange.respond(503, _body(text), (JSON, _RETRY))
            return False
        wanted = settings.scopes if settings is not None else ()
        if not set(wanted) <= set(principal.scopes):
            text = "the token does not have the scopes that are needed"
            await self._refuse(exchange, 403, "insufficient_scope", text)
            return False
        exchange.principal = principal
        return True

    async def _refuse(self, exchange: Exchange, status: int, error: str, text: str) -> None:
        self._note(error or "no_token", problem=text)
        settings = self.auth.jwt
        challenge = Challenge(
            error=error,
            reason=text if error else "",
            metadata=metadata.location(exchange, settings) if settings is not None else "",
            scopes=settings.scopes if settings is not None else (),
        )
        await exchange.respond(status, _body(text), (JSON, challenge.header()))

    def _note(self, reason: str, *, problem: str) -> None:
        """One line for each kind of refusal in ten seconds, and how many there were since."""
        self._metrics.agent_refusals.labels(reason).inc()
        now = trio.current_time()
        last, count = self._logged.get(reason, (-_LOG_SECONDS, 0))
        if now - last < _LOG_SECONDS:
            self._logged[reason] = (last, count + 1)
            return
        self._logged[reason] = (now, 0)
        log().warning("agent_refused", reason=reason, problem=problem, more=count)

    def _make(self, auth: AgentAuth) -> Verifier | None:
        if auth.jwt is not None:
            return self._jwt(auth.jwt)
        if auth.token_from_file is not None:
            file = WatchedFile(auth.token_from_file, _TOKEN_BYTES)
            _must("tokenFromFile", lambda: _token_in_file(file))
            return SharedToken(lambda: _token_in_file(file))
        if auth.token_from_env is not None:
            value = self._environ.get(auth.token_from_env, "")
            origin = f"the variable {auth.token_from_env}"
            found = _must("tokenFromEnv", lambda: _usable(value.encode(), origin))
            return SharedToken(lambda: found)
        return None

    def _jwt(self, settings: Jwt) -> Verifier:
        # Late, as only this needs the library.
        from kars_router.front.keyfetch import KeyFetch, is_safe
        from kars_router.front.keysource import FetchedKeys, FileKeys
        from kars_router.front.tokens import JwtVerifier

        if settings.jwks_file is not None:
            file_keys = FileKeys(WatchedFile(settings.jwks_file, _JWKS_BYTES))
            _must("jwt.jwksFile", file_keys.load)
            return JwtVerifier(settings, file_keys)
        if not is_safe(settings.jwks_url or settings.issuer):
            key = "jwksUrl" if settings.jwks_url else "issuer"
            text = "must begin with https://, for keys that come from it are trusted"
            raise ConfigError([f"agentAuth.jwt.{key}: {text}"])
        fetch = KeyFetch(settings, self._transports)
        return JwtVerifier(settings, FetchedKeys(fetch, settings.issuer))


def _token_in_file(file: WatchedFile) -> bytes:
    try:
        return _usable(file.read(), str(file.path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UncheckableError(f"{file.path}: {reason}") from error


def _usable(data: bytes, origin: str) -> bytes:
    token = data.strip()
    try:
        shown = token_in(b"Bearer " + token)
    except BadTokenError as error:
        # What no header can hold would keep everybody out, and nobody would know why.
        raise UncheckableError(f"{origin} holds no token that could be sent") from error
    return (shown or "").encode()


def _must(key: str, get: Callable[[], T]) -> T:
    try:
        return get()
    except UncheckableError as error:
        raise ConfigError([f"agentAuth.{key}: {error}"]) from error


async def _describe(exchange: Exchange, about: str, settings: Jwt) -> None:
    if exchange.method != "GET":
        await exchange.respond(405, _body("use GET"), (JSON, _ALLOW))
        return
    found = metadata.describe(exchange, about, settings)
    await exchange.respond(200, jsonrpc.encode(found), (JSON,))


def _body(text: str) -> bytes:
    return jsonrpc.error(b"", jsonrpc.error_object(jsonrpc.REFUSED, text))


def _kind(auth: AgentAuth) -> str:
    if auth.jwt is not None:
        return "jwt"
    return "token" if auth.token_from_file or auth.token_from_env else "none"
