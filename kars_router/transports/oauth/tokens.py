"""One token for all who use the same client at the same authorization server for the same server.

Owns when a token is got, renewed and given up, and which authorization server it is from. Must
not know requests to MCP servers, nor the names of settings outside of `oauth`.

Source: RFC 6749 section 5.1, RFC 6750 section 3.1; MCP "Authorization / Scope Challenge Handling".
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import trio
from attrs import field, frozen

from kars_router.config.auth import OAuth
from kars_router.telemetry import log
from kars_router.transports.oauth import challenge, grants, secrets
from kars_router.transports.oauth.addresses import complaint, resource_of
from kars_router.transports.oauth.discovery import (
    AuthorizationServer,
    find_issuer,
    find_token_endpoint,
)
from kars_router.transports.oauth.endpoint import Endpoint, Transports
from kars_router.transports.oauth.errors import TokenError, harmless

# Less than the usual patience with opening a session, so that the sentence is ours.
ATTEMPT_SECONDS: Final = 4.5
_MARGIN: Final = 0.2  # of a token's life
_MOST_MARGIN: Final = 60.0
_UNKNOWN_LIFETIME: Final = 300.0
_LONGEST_LIFETIME: Final = 24 * 3600.0
_METADATA_SECONDS: Final = 3600.0
_FIRST_REST: Final = 1.0
_LONGEST_REST: Final = 30.0
_LONGEST_DISTRUST: Final = 300.0
# After so long without a refusal, the next one is no sign of a wrong configuration.
_QUIET_SECONDS: Final = 60.0


@frozen(kw_only=True)
class Token:
    """A token and how long it is of use, by trio's clock.

    Attributes:
        value: the token.
        issuer: who issued it.
        scopes: what was asked for.
        got: when it was asked for.
        renew: when to get the next one.
        expires: when it ends; infinite if that is not known.
    """

    value: str = field(repr=False)
    issuer: str
    scopes: tuple[str, ...]
    got: float
    renew: float
    expires: float


class TokenSource:
    """Gets tokens for one server, one at a time.

    Everything waits for one attempt that is under way; an attempt that failed is not repeated for
    a while, so that many sessions are no burden to an authorization server in trouble.

    Args:
        settings: what is configured.
        url: the server's URL.
        transports: makes the transport for the origin of a URL.
        random: returns a float in [0, 1), so that routers do not renew in step.
    """

    def __init__(
        self,
        settings: OAuth,
        url: str,
        transports: Transports,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._server = resource_of(url)
        self._transports = transports
        self._random = random
        self._lock = trio.Lock()
        self._token: Token | None = None
        self._scopes = settings.scopes
        self._denied: frozenset[str] = frozenset()
        self._hint = ""
        self._issuer = ""
        self._resource = ""
        self._metadata: AuthorizationServer | None = None
        self._metadata_until = -math.inf
        self._trouble: TokenError | None = None
        self._rests_until = -math.inf
        self._failures = 0
        self._fingerprint: tuple[object, ...] = ()
        self._refusals = 0
        self._refused_at = -math.inf
        self._distrusts_at = -math.inf

    def stale(self, value: str, *, urgent: bool) -> bool:
        """Whether to ask for another token than this one. Quick, and no checkpoint.

        Args:
            value: the token in use; "" for none.
            urgent: whoever asks has no time for anything but a token that is of use at all.
        """
        token = self._token
        if token is None or token.value != value:
            return token is not None
        now = trio.current_time()
        if now >= token.expires:
            return True
        # While one gets the next, the others go on with this one.
        return not (urgent or now < token.renew or self._lock.locked() or self._rests())

    async def get(self) -> Token | None:
        """A token that is of use; None if nobody says where to get one, so that none is sent.

        Raises:
            TokenError: there is none to be had.

        Cancelled, it leaves the attempt to whoever waits behind it.
        """
        async with self._lock:
            token, now = self._token, trio.current_time()
            if token is not None and now < token.renew:
                return token
            alive = token if token is not None and now < token.expires else None
            if alive is not None and self._rests():
                return alive
            try:
                return await self._attempt(self._scopes)
            except TokenError as error:
                if alive is None:
                    raise
                log().warning("token_not_renewed", issuer=alive.issuer, error=str(error))
                return alive

    async def renew(self, refused: str, *, status: int, said: str) -> Token | None:
        """Another token than one that the server refused, if another could help.

        Args:
            refused: the token; "" if none was sent.
            status: 401 or 403.
            said: the `WWW-Authenticate` fields; untrusted.

        Returns:
            the newest token, which is the refused one if asking again would be of no use.

        Raises:
            TokenError: there is none to be had.

        Cancelled, it leaves the attempt to whoever waits behind it.
        """
        asked = challenge.parse(said)
        async with self._lock:
            token = self._token
            if token is not None and token.value != refused:
                return token
            if not self._settings.issuer and not self._issuer:
                self._hint = asked.resource_metadata
            short = asked.error == challenge.INSUFFICIENT_SCOPE
            if status == 403 and not short:
                return token  # it is not the token that is wrong
            wanted = tuple(scope for scope in asked.scopes if scope not in self._denied)
            if len(self._denied) >= challenge.MOST_SCOPES:
                wanted = ()  # a server that makes up new ones must not cost a request for each call
            scopes = challenge.union(self._scopes, wanted)
            if short and token is not None and scopes == token.scopes:
                return token
            if not short and token is not None and not self._may_distrust(token):
                return token
            fresh = await self._step_up(scopes, token if status == 403 else None)
            if fresh is None:
                raise TokenError(
                    "is missing: the server wants a token and does not say who issues it",
                    key="issuer",
                )
            return fresh

    async def _step_up(self, scopes: tuple[str, ...], fallback: Token | None) -> Token | None:
        try:
            token = await self._attempt(scopes)
        except TokenError as error:
            if error.code != "invalid_scope" or scopes == self._scopes:
                raise
            # What a server asks for is not always what it can have.
            self._denied |= {*scopes} - {*self._scopes}
            log().warning("scopes_not_granted", error=str(error))
            self._forgive()
            return fallback or await self._attempt(self._scopes)
        self._scopes = scopes
        return token

    def _may_distrust(self, token: Token) -> bool:
        """Whether to replace a token because the server says that it is no good."""
        now = trio.current_time()
        quiet = now - max(self._refused_at, token.got) >= _QUIET_SECONDS
        self._refused_at = now
        if quiet:
            self._refusals = 0
        elif now < self._distrusts_at:
            return False
        pause = min(_LONGEST_DISTRUST, _FIRST_REST * 2.0 ** min(self._refusals, 30))
        self._refusals += 1
        self._distrusts_at = now + pause
        return True

    async def _attempt(self, scopes: tuple[str, ...]) -> Token | None:
        """Gets a token and keeps it; the lock is held."""
        if self._trouble is not None and self._rests():
            raise self._trouble.again()
        fingerprint = secrets.fingerprint(self._settings)
        try:
            with trio.move_on_after(ATTEMPT_SECONDS) as patience:
                token = await self._fetch(scopes)
            if patience.cancelled_caught:
                raise TokenError(f"no token was issued within {ATTEMPT_SECONDS:g} s")
        except TokenError as error:
            self._fail(error, fingerprint)
            raise
        self._forgive()
        if token is not None:
            log().info("token_issued", issuer=token.issuer, seconds=round(token.renew - token.got))
            self._token = token
        return token

    async def _fetch(self, scopes: tuple[str, ...]) -> Token | None:
        settings = self._settings
        proof = await secrets.read(settings)
        async with Endpoint(self._transports) as endpoint:
            if not await self._discover(endpoint):
                return None
            assert self._metadata is not None
            body, headers = grants.request(settings, proof, scopes=scopes, resource=self._resource)
            asked = trio.current_time()
            answer = await endpoint.post(
                self._metadata.token_endpoint, "the token endpoint", body, headers
            )
        issued = grants.read(settings, proof, answer)
        renew, expires = self._times(asked, issued.lifetime)
        return Token(
            value=issued.value,
            issuer=self._metadata.issuer,
            scopes=scopes,
            got=asked,
            renew=renew,
            expires=expires,
        )

    async def _discover(self, endpoint: Endpoint) -> bool:
        if self._metadata is not None and trio.current_time() < self._metadata_until:
            return True
        settings = self._settings
        issuer, resource = settings.issuer or "", settings.resource or self._server
        if issuer:
            if wrong := complaint(issuer):
                raise TokenError(wrong, key="issuer")
        else:
            found = await find_issuer(
                endpoint, self._server, hint=self._hint, resource=settings.resource or ""
            )
            if found is None and self._issuer:
                raise TokenError("the server no longer says who issues its tokens", key="issuer")
            if found is None and self._hint:
                raise TokenError("the server's metadata is not where it says", key="issuer")
            if found is None:
                return False
            issuer, resource = found.issuer, found.resource
            if self._issuer and issuer != self._issuer:
                # The client's secret belongs to one authorization server, and to no other.
                raise TokenError(
                    f"the server now names another authorization server ({harmless(issuer)}); "
                    "set issuer if that is right",
                    key="issuer",
                )
        self._metadata = await find_token_endpoint(endpoint, issuer)
        self._metadata_until = trio.current_time() + _METADATA_SECONDS
        self._issuer, self._resource = issuer, resource
        return True

    def _times(self, asked: float, lifetime: float | None) -> tuple[float, float]:
        """When to renew, and when the token ends."""
        known = min(lifetime or _UNKNOWN_LIFETIME, _LONGEST_LIFETIME)
        margin = min(_MOST_MARGIN, known * _MARGIN) * (1 + self._random())
        return asked + known - margin, math.inf if lifetime is None else asked + lifetime

    def _rests(self) -> bool:
        """Whether to leave the authorization server alone; not if a file has changed since."""
        return trio.current_time() < self._rests_until and self._fingerprint == (
            secrets.fingerprint(self._settings)
        )

    def _fail(self, error: TokenError, fingerprint: tuple[object, ...]) -> None:
        rest = min(_LONGEST_REST, _FIRST_REST * 2.0 ** min(self._failures, 30))
        rest = max(rest * (0.5 + self._random() / 2), error.retry_after)
        self._failures += 1
        self._trouble, self._fingerprint = error, fingerprint
        self._rests_until = trio.current_time() + rest
        if error.moved:
            self._metadata = None

    def _forgive(self) -> None:
        self._trouble, self._failures, self._rests_until = None, 0, -math.inf
