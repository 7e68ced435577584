"""Which calls a rule is about: servers, tools, resources, prompts and annotations.

Pure. Owns what an annotation means that a server leaves out.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from fnmatch import translate
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from kars_plugin_toolpolicy.uris import aliases, spellings
from kars_router.config.toolpolicy import AppliesTo, Rule
from kars_router.model import GovernedCall


class Kind(enum.StrEnum):
    """What a call is for."""

    TOOL = "tool"
    RESOURCE = "resource"
    PROMPT = "prompt"


_METHODS: Final = {
    "tools/call": Kind.TOOL,
    "resources/read": Kind.RESOURCE,
    "prompts/get": Kind.PROMPT,
}


class UnknownKindError(Exception):
    """A request that cannot be matched, because it does not say what it is for."""


@define
class Subject:
    """What a call is about, looked up once for all rules.

    Attributes:
        server: the server.
        kind: what it is for; a completion is for the prompt or resource that it names.
        name: the tool, prompt or URI.
        spellings: ways to write the name that a server may take for the same thing.
        aliases: further ones, which only some servers may.
        hints: the annotations of a tool, those that are left out with the values that MCP gives
            them; empty for anything else.
    """

    server: str
    kind: Kind
    name: str
    spellings: tuple[str, ...]
    hints: Mapping[str, bool] = field(factory=dict)
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, call: GovernedCall) -> Subject:
        """Looks at a call.

        Raises:
            UnknownKindError: the method is unknown, or its params do not say what it is for.
        """
        kind = _METHODS.get(call.method) or _completed(call)
        hints = _hints(call.annotations) if kind is Kind.TOOL else {}
        if kind is not Kind.RESOURCE:
            return cls(call.server, kind, call.name, (call.name,), hints)
        uri = call.name
        return cls(call.server, kind, uri, spellings(uri), hints, aliases(uri))


class Globs:
    """Patterns, compiled into one; see `kars_router.config.globs` for what they may be.

    Args:
        patterns: the patterns.
        fold: whether they match in any case.
    """

    __slots__ = ("_match", "any")

    def __init__(self, patterns: Sequence[str], *, fold: bool = False) -> None:
        self.any = "*" in patterns
        pattern = "|".join(map(translate, patterns)) if patterns else r"(?!)"
        self._match = re.compile(pattern, re.IGNORECASE if fold else 0).match

    def some(self, names: Sequence[str]) -> bool:
        """Whether one of the names matches one of the patterns."""
        return self.any or any(map(self._match, names))

    def every(self, names: Sequence[str]) -> bool:
        """Whether each of the names matches one of the patterns."""
        return self.any or all(map(self._match, names))


@frozen
class Matcher:
    """What a rule names, compiled."""

    _servers: Globs
    _kinds: Mapping[Kind, Globs]
    _hints: Mapping[str, bool]
    _permits: bool

    @classmethod
    def of(cls, rule: Rule, *, permits: bool) -> Matcher:
        """Compiles the patterns of a rule.

        Args:
            rule: the rule.
            permits: whether it lets calls pass. Then every spelling of a name has to match, else
                one is enough, in any case: neither `/srv/../etc` nor `/%65tc` nor `/ETC` gets past
                a rule about `/etc`.
        """
        named = {
            Kind.TOOL: rule.tools,
            Kind.RESOURCE: rule.resources,
            Kind.PROMPT: rule.prompts,
        }
        kinds = {
            kind: Globs(patterns, fold=kind is Kind.RESOURCE and not permits)
            for kind, patterns in named.items()
            if patterns
        }
        return cls(Globs(rule.servers), kinds, dict(rule.annotations), permits)

    def mismatch(self, subject: Subject) -> str | None:
        """Says what does not fit, or None if all fits."""
        if not self._servers.some((subject.server,)):
            return "it is for other servers"
        if self._kinds:
            globs = self._kinds.get(subject.kind)
            if globs is None:
                return f"it is not for any {subject.kind}"
            fits = (
                globs.every(subject.spellings)
                if self._permits
                else globs.some((*subject.spellings, *subject.aliases))
            )
            if not fits:
                return f"it is for other {subject.kind}s"
        for hint, wanted in self._hints.items():
            if subject.kind is not Kind.TOOL:
                return "it asks for annotations, which only tools have"
            if subject.hints.get(hint, False) is not wanted:
                return f"{hint} is not {str(wanted).lower()}"
        return None


@frozen
class Scope:
    """Which calls a policy is for, compiled."""

    _servers: Globs
    _tools: Globs

    @classmethod
    def of(cls, applies: AppliesTo) -> Scope:
        """Compiles `appliesTo`; labels are the business of whoever knows sandboxes."""
        return cls(Globs((applies.mcp_server,)), Globs((applies.tool,)))

    def serves(self, server: str) -> bool:
        """Whether calls to a server can be of it."""
        return self._servers.some((server,))

    def holds(self, subject: Subject) -> bool:
        """Whether a call is of it; a policy for certain tools is not for resources and prompts."""
        tools = self._tools.any or (
            subject.kind is Kind.TOOL and self._tools.some(subject.spellings)
        )
        return tools and self._servers.some((subject.server,))


def _completed(call: GovernedCall) -> Kind:
    if call.method == "completion/complete":
        try:
            params = msgspec.json.decode(call.params)
        except (msgspec.DecodeError, RecursionError):
            params = None
        reference = params.get("ref") if isinstance(params, dict) else None
        named = reference.get("type") if isinstance(reference, dict) else None
        if named == "ref/prompt":
            return Kind.PROMPT
        if named == "ref/resource":
            return Kind.RESOURCE
    raise UnknownKindError


def _hints(annotations: Mapping[str, Any]) -> dict[str, bool]:
    """The hints of a tool; what is left out, or no bool, is as careful as MCP has it."""
    hints = {name: hint for name, hint in annotations.items() if isinstance(hint, bool)}
    reads = hints.setdefault("readOnlyHint", False)
    hints.setdefault("destructiveHint", not reads)
    hints.setdefault("idempotentHint", False)
    hints.setdefault("openWorldHint", True)
    return hints
