"""Every hook that a plugin may implement, typed and documented.

Hooks are synchronous and quick; whatever has to wait is an object that a hook hands over and that
the router awaits with a deadline. Implementations are called one by one, the ones of installed
plugins before the built-in ones, so that a plugin which raises silences nobody else. Imports
types only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import pluggy
from attrs import frozen

if TYPE_CHECKING:
    from kars_router.egress import Place, SandboxEgress
    from kars_router.model import (
        CallEnd,
        Decision,
        Failure,
        GovernedCall,
        LossVerdict,
        ServerInfo,
        SessionInfo,
        ToolCall,
    )

PROJECT: Final = "kars_router"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Credentials(Protocol):
    """Supplies the headers that authenticate the router to one server."""

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        """The headers to send.

        Args:
            refresh: True after the server refused the previous ones; fetch them anew.

        Returns:
            header names and values; secrets, never logged.

        Raises:
            kars_router.errors.UserError: they cannot be had; names what to change.
        """
        ...


@runtime_checkable
class LiveCredentials(Credentials, Protocol):
    """Credentials that know when they are out of date, and listen to why they were refused.

    What `Credentials` may do beside; the router asks for neither of these where they are missing.
    """

    def stale(self, headers: Mapping[str, str], *, urgent: bool) -> bool:
        """Says whether headers that it gave are to be replaced; asked before every request.

        Synchronous, and quick: a look at a clock, or at the state of a file.

        Args:
            headers: what it returned last to the session that asks.
            urgent: the request must not wait (an answer to a ping), so that only headers which
                are of no more use are to be replaced.
        """
        ...

    async def renew(
        self, refused: Mapping[str, str], *, status: int, challenge: str
    ) -> Mapping[str, str]:
        """Takes the place of `headers` after a refusal.

        Args:
            refused: the headers that the server refused.
            status: the HTTP status, 401 or 403.
            challenge: its `WWW-Authenticate` fields, joined by commas; untrusted.

        Returns:
            the headers to try once more with; the same ones if that would be of no use.

        Raises:
            kars_router.errors.UserError: they cannot be had; names what to change.
        """
        ...


@frozen(kw_only=True)
class GovernanceSettings:
    """What governors and transformers are made from.

    Attributes:
        policies: the `policies` of the configuration, as `kars_router.config.toolpolicy` values.
        state: directory for what has to outlive the process; None for nowhere.
    """

    policies: Sequence[Any] = ()
    state: Path | None = None


class Governor(Protocol):
    """Decides on calls and sees how they end.

    All governors are asked of every call, one after the other; deny beats approve beats allow. One
    that raises, or takes longer than `governance.deadline`, has said deny. One that enforces the
    `policies` of the configuration says so by an attribute `enforces_policies = True`; without any
    such governor, a configuration with policies is refused.
    """

    async def before_call(self, call: GovernedCall) -> Decision | None:
        """Says what is to happen to a call.

        Args:
            call: the call; its content is an agent's and untrusted.

        Returns:
            a decision, or None for no opinion.
        """
        ...

    async def after_call(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        """Takes note of how a call ended; called once for each `before_call` that was begun.

        Args:
            call: the same call.
            end: how it ended, denials by others included.

        Returns:
            a `deny` to withhold the result from the agent; the call's fate stays what it was.
        """
        ...

    async def aclose(self) -> None:
        """Writes down what has to outlive the process; no call follows."""
        ...


class Transformer(Protocol):
    """Changes what passes. Quick and synchronous; one that raises fails the call.

    JSON goes in and comes out; what is not to be changed is returned as it came.
    """

    def outgoing(self, call: GovernedCall) -> bytes:
        """The params to send to the server; asked after the governors have not denied the call.

        Also asked about denied calls whose arguments the audit record shows.

        Args:
            call: the call; `params` is what the transformers before this one left.

        Returns:
            the `params` object as JSON.
        """
        ...

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:
        """What the agent gets to see of something that a server sent on behalf of a call.

        Args:
            call: the call. What belongs to none has a `method` and a `name` of "".
            body: a result, an error object, or the params of a notification or question, as JSON;
                also the call's own params, before the audit record shows their arguments.

        Returns:
            the same, changed or not.
        """
        ...


class AuditSink(Protocol):
    """Takes copies of audit records somewhere else."""

    async def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Takes records, in their order; called by one task only, so one call follows the other.

        Args:
            records: as they stand in the journal.

        Raises:
            Exception: they could not be taken; they are counted and given up.
        """
        ...

    async def aclose(self) -> None:
        """Writes out what is left; bounded by two seconds."""
        ...


@hookspec
def kars_configure(options: Mapping[str, Any]) -> None:
    """Takes the plugin's own options, once, before any other hook.

    Args:
        options: the mapping at `plugins.options.<plugin name>`, empty if there is none.

    Raises:
        PluginError: an option is unknown or has an impossible value; the message names it.
    """


@hookspec
def kars_classify_loss(failure: Failure) -> LossVerdict | None:
    """Says whether a failure means that the upstream session is gone.

    The first verdict counts; the built-in classifier is asked last. A wrong "lost" costs the
    agent its state, a wrong "not lost" leaves it on a dead session.

    Args:
        failure: phase, status, start of the body, JSON-RPC code, whether a session id was sent.

    Returns:
        a verdict with its reason, or None for no opinion.
    """


@hookspec
def kars_admit_tool(server: ServerInfo, tool: str, definition: Mapping[str, Any]) -> bool | None:
    """Says whether a server's tool may be seen and called at all.

    A tool is admitted when at least one implementation says True and none says False; an
    implementation that raises counts as False (fail closed).

    Args:
        server: the server that offers the tool.
        tool: the tool's name on that server.
        definition: its definition as the server sent it; untrusted.

    Returns:
        True, False, or None for no opinion.
    """


@hookspec
def kars_credentials(server: ServerInfo) -> Credentials | None:
    """Hands over the object that authenticates the router to a server.

    The first object counts; the built-in one, asked last, serves `bearerFromEnv` and
    `bearerFromFile`.

    Args:
        server: the server.

    Returns:
        the credentials, or None if this plugin has none for it.
    """


@hookspec
def kars_detect_state_loss(
    call: ToolCall, session: SessionInfo, result: Mapping[str, Any]
) -> str | None:
    """Says that a server silently lost its state, judging by a result that looks successful.

    Called for each answered tools/call whose result is at most 256 KiB. The agent is then told as
    if the session had been lost.

    Args:
        call: the call.
        session: the session that answered.
        result: the decoded result; untrusted; must not be changed.

    Returns:
        one clause that says what was lost, or None.
    """


@hookspec
def kars_session_opened(session: SessionInfo) -> None:
    """Takes note of a new upstream session, after its handshake.

    Args:
        session: the session.
    """


@hookspec
def kars_session_closed(session: SessionInfo, reason: str) -> None:
    """Takes note of the end of an upstream session, however it came.

    Args:
        session: the session.
        reason: one clause.
    """


@hookspec
def kars_session_lost(session: SessionInfo, reason: str) -> None:
    """Takes note that an upstream session was lost; `kars_session_closed` follows.

    Args:
        session: the session.
        reason: one clause.
    """


@hookspec
def kars_session_restored(session: SessionInfo, reason: str) -> None:
    """Takes note that a session has taken the place of a lost one; after `kars_session_opened`.

    Args:
        session: the new session, a generation above the lost one.
        reason: why the one before it was lost.
    """


@hookspec
def kars_governors(settings: GovernanceSettings) -> Sequence[Governor] | None:
    """Makes the governors for the policies in force.

    Called at the start, and again when policies have changed: calls that began before are ended by
    the governors that were asked about them, and what a plugin counts it has to keep between them.

    Args:
        settings: the policies, and where to keep what outlives the process.

    Returns:
        the governors, in the order in which they are asked; empty for none.

    Raises:
        kars_router.errors.ConfigError: a policy cannot be used, with its path from `policies` on;
            the configuration is then refused as a whole.
    """


@hookspec
def kars_transformers(settings: GovernanceSettings) -> Sequence[Transformer] | None:
    """Makes the transformers of arguments and results; called when `kars_governors` is.

    Args:
        settings: as for `kars_governors`.

    Returns:
        the transformers, in the order in which arguments pass them; results pass in reverse.

    Raises:
        kars_router.errors.ConfigError: as for `kars_governors`.
    """


@hookspec
def kars_audit_sinks() -> Sequence[AuditSink] | None:
    """Makes the sinks that get copies of audit records; called once, when auditing begins.

    Returns:
        the sinks.
    """


@hookspec
def kars_egress_rules(
    server: ServerInfo, place: Place, rules: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]] | None:
    """Adds to or replaces the egress rules that a server needs.

    Asked by the operator and by `kars egress`, one plugin after the other; each sees what the one
    before it returned. The built-in one, asked first, derives the rules from the server's URL.

    Args:
        server: the server, with its URL, which may be one that cannot be used.
        place: the sandbox's namespace, the cluster's domain, and how to read a Service.
        rules: NetworkPolicy egress rules, as plain data; must not be changed in place.

    Returns:
        the rules to use instead, or None to leave them.
    """


@hookspec
def kars_egress_objects(sandbox: SandboxEgress, place: Place) -> SandboxEgress | None:
    """Adds manifests that open what a NetworkPolicy cannot, and takes out what they replace.

    Asked by the operator and by `kars egress render`, one plugin after the other, when the rules of
    all servers of a sandbox are known; each sees what the one before it returned. The NetworkPolicy
    is written from what the last one returned, so that it is there in any case.

    Args:
        sandbox: its servers, the rules of its NetworkPolicy, and further manifests; must not be
            changed in place (`attrs.evolve` makes another one).
        place: as for `kars_egress_rules`; `place.installed` says what the cluster knows.

    Returns:
        what to use instead, or None to leave it.
    """
