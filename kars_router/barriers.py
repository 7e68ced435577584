"""Objects of plugins behind a barrier and a deadline: what a plugin does wrong stays its own.

Owns what an error or a timeout of such an object means: a governor that fails has said deny, a
transformer that fails lets nothing pass. Must not know pluggy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio
from attrs import evolve, field, frozen

from kars_router.errors import KarsError, PluginError, UserError
from kars_router.hookspecs import Credentials, Governor, LiveCredentials, Transformer
from kars_router.model import CallEnd, Decision, GovernedCall, Ruling
from kars_router.telemetry import Metrics, log

_CREDENTIALS_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_BROKEN: Final = "it could not be made at the start; the log of the start says why"


class TransformError(KarsError):
    """A transformer failed, so that what it should have seen must not pass."""


@frozen
class GuardedCredentials:
    """A plugin's credentials, as `LiveCredentials` whatever they are."""

    plugin: str
    credentials: Credentials
    _live: LiveCredentials | None = field(init=False, eq=False, repr=False)

    @_live.default
    def _as_live(self) -> LiveCredentials | None:
        return self.credentials if isinstance(self.credentials, LiveCredentials) else None

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        """See `Credentials.headers`; every failure is a `UserError`."""
        return await self._bounded(lambda: self.credentials.headers(refresh=refresh))

    async def renew(
        self, refused: Mapping[str, str], *, status: int, challenge: str
    ) -> Mapping[str, str]:
        """See `LiveCredentials.renew`; every failure is a `UserError`."""
        live = self._live
        if live is None:
            return await self.headers(refresh=True)
        return await self._bounded(lambda: live.renew(refused, status=status, challenge=challenge))

    def stale(self, headers: Mapping[str, str], *, urgent: bool) -> bool:
        """See `LiveCredentials.stale`; a failure changes nothing."""
        if self._live is None:
            return False
        try:
            return bool(self._live.stale(headers, urgent=urgent))
        except Exception as error:  # noqa: BLE001 - crash barrier: one plugin call
            report(self.plugin, "credentials", error, None)
            return False

    async def _bounded(
        self, operation: Callable[[], Awaitable[Mapping[str, str]]]
    ) -> Mapping[str, str]:
        try:
            with trio.fail_after(_CREDENTIALS_SECONDS):
                return dict(await operation())
        except UserError:
            raise
        except trio.TooSlowError as error:
            raise UserError(f"plugin {self.plugin} took too long for credentials") from error
        except Exception as error:
            log().error("plugin_error", plugin=self.plugin, hook="credentials", exc_info=error)
            raise UserError(f"plugin {self.plugin} failed to supply credentials") from error


@frozen
class GuardedGovernor:
    """A plugin's governor."""

    plugin: str
    governor: Governor
    metrics: Metrics | None = None

    async def before_call(self, call: GovernedCall, *, seconds: float) -> Decision | None:
        """What it says of a call; an error, a timeout or an impossible answer is a deny."""
        try:
            with trio.move_on_after(seconds) as patience:
                said = await self.governor.before_call(call)
            if patience.cancelled_caught:
                raise trio.TooSlowError
            if said is not None and not isinstance(said, Decision):
                raise TypeError(f"before_call returned {type(said).__name__}")
        except Exception as error:  # noqa: BLE001 - crash barrier: one plugin call
            return self._failed("before_call", error, "could not decide on this call")
        if said is None or said.source == self.plugin:
            return said
        return evolve(said, source=self.plugin)

    async def after_call(
        self, call: GovernedCall, end: CallEnd, *, seconds: float
    ) -> Decision | None:
        """A deny if the result is to be withheld; so is an error or a timeout."""
        try:
            with trio.move_on_after(seconds) as patience:
                said = await self.governor.after_call(call, end)
            if patience.cancelled_caught:
                raise trio.TooSlowError
            if said is not None and not isinstance(said, Decision):
                raise TypeError(f"after_call returned {type(said).__name__}")
        except Exception as error:  # noqa: BLE001 - crash barrier: one plugin call
            return self._failed("after_call", error, "could not judge the result of this call")
        if said is None or said.ruling is not Ruling.DENY:
            return None
        return evolve(said, source=self.plugin)

    async def aclose(self) -> None:
        """Has it write down what it must; never raises, never takes longer than two seconds."""
        try:
            with trio.fail_after(_CLOSE_SECONDS):
                await self.governor.aclose()
        except Exception as error:  # noqa: BLE001 - crash barrier: one plugin call
            report(self.plugin, "aclose", error, self.metrics)

    def _failed(self, hook: str, error: Exception, clause: str) -> Decision:
        report(self.plugin, hook, error, self.metrics)
        return Decision(
            ruling=Ruling.DENY,
            code="policy_error",
            reason=f"The governor {self.plugin} {clause}, and what is not decided is denied.",
            source=self.plugin,
        )


@frozen
class GuardedTransformer:
    """A plugin's transformer."""

    plugin: str
    transformer: Transformer
    metrics: Metrics | None = None

    def outgoing(self, call: GovernedCall) -> bytes:
        """The params to send.

        Raises:
            TransformError: it failed.
        """
        try:
            return _bytes(self.transformer.outgoing(call))
        except Exception as error:
            report(self.plugin, "outgoing", error, self.metrics)
            raise TransformError(f"the transformer {self.plugin} failed") from error

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:
        """What the agent gets to see.

        Raises:
            TransformError: it failed.
        """
        try:
            return _bytes(self.transformer.incoming(call, body))
        except Exception as error:
            report(self.plugin, "incoming", error, self.metrics)
            raise TransformError(f"the transformer {self.plugin} failed") from error


class Broken:
    """What stands for a governor or a transformer that its plugin could not make: it fails."""

    enforces_policies = True  # by letting nothing pass

    async def before_call(self, call: GovernedCall) -> Decision | None:
        """Fails, which is a deny."""
        raise PluginError(_BROKEN)

    async def after_call(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        """Has nothing to say: nothing was made."""
        return None

    async def aclose(self) -> None:
        """Has nothing to write down."""

    def outgoing(self, call: GovernedCall) -> bytes:
        """Fails, so that nothing is sent."""
        raise PluginError(_BROKEN)

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:
        """Fails, so that nothing is seen."""
        raise PluginError(_BROKEN)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"a transformer returned {type(value).__name__}")
    return value


def report(plugin: str, hook: str, error: Exception, metrics: Metrics | None) -> None:
    """Says in the log that a plugin has failed, and counts it.

    The text of an exception may quote what the plugin was looking at, an agent's arguments among
    it, so it is for those who have turned on debugging.
    """
    ours = isinstance(error, KarsError | trio.TooSlowError)
    log().error(
        "plugin_error",
        plugin=plugin,
        hook=hook,
        error=(str(error) or type(error).__name__) if ours else type(error).__name__,
        where=_where(error),
    )
    log().debug("plugin_error_detail", plugin=plugin, hook=hook, exc_info=error)
    if metrics is not None:
        metrics.plugin_errors.labels(plugin, hook).inc()


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
