"""Profiles in kars' own format (AGT): read, checked, and said in terms of calls.

A profile is a list of `policies` with a `type`: `capability` (`allowed_actions`, `denied_actions`),
`approval` (`actions`, `min_approvals`) or `rate_limit` (`actions`, `max_calls`, `window`). Actions
are strings such as `tool:browser_click`; those of kinds that no MCP call has (`shell:`, `egress:`)
are noted and passed over. Pure; must not know how rules are ordered or decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, field, frozen

from kars_plugin_toolpolicy.matching import Globs, Kind, Subject
from kars_router.config.document import parse_document
from kars_router.config.globs import check_glob
from kars_router.config.problems import InvalidError, Path, Problem, kind_of, show, suggest
from kars_router.config.toolpolicy import Per, RateLimit
from kars_router.config.units import parse_duration
from kars_router.model import Ruling

_LARGEST: Final = 1_000_000
_PROFILE_KEYS: Final = ("version", "agent", "name", "description", "policies")
_COMMON_KEYS: Final = ("name", "type", "priority", "description")
_KEYS: Final = {
    "capability": ("allowed_actions", "denied_actions"),
    "approval": ("actions", "min_approvals"),
    "rate_limit": ("actions", "max_calls", "window"),
}
_KIND: Final = re.compile(r"([A-Za-z0-9_-]+):")
_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@frozen
class Actions:
    """Patterns of action strings, compiled."""

    _globs: Globs
    _folded: Globs
    _permits: bool

    @classmethod
    def of(cls, patterns: Sequence[str], *, permits: bool) -> Actions:
        """Compiles them; see `Matcher.of` for `permits`."""
        return cls(Globs(patterns), Globs(patterns, fold=True), permits)

    def hold(self, subject: Subject) -> bool:
        """Whether they match a call."""
        spelt = tuple(f"{subject.kind}:{each}" for each in subject.spellings)
        if subject.kind is Kind.RESOURCE:
            if self._permits:
                return self._globs.every(spelt)
            return self._folded.some((*spelt, *(f"resource:{each}" for each in subject.aliases)))
        # A tool may itself be called `web.fetch`, as if it were the tool fetch of the server web:
        # its plain name is not believed where calls are let through.
        plain = () if self._permits and _qualified(subject.name) else spelt
        return self._globs.some((*plain, *_qualified_names(subject)))


@frozen(kw_only=True)
class Line:
    """One line of a profile that decides.

    Attributes:
        name: what it is called in decisions.
        ruling: what it says of the calls that it matches.
        priority: higher ones are asked first.
        actions: what it matches.
    """

    name: str
    ruling: Ruling
    priority: int
    actions: Actions


@define
class Profile:
    """A profile, read.

    Attributes:
        lines: what decides, in the order of the file; of one policy, denials come first.
        limits: its rate limits as those of a ToolPolicy, each agent with its own bucket.
        notes: what in it has no meaning here.
        problems: why it cannot be used, with paths from the profile on.
    """

    lines: list[Line] = field(factory=list)
    limits: list[RateLimit] = field(factory=list)
    notes: list[str] = field(factory=list)
    problems: list[Problem] = field(factory=list)


def read_profile(inline: object) -> Profile:
    """Reads a profile; whatever is wrong with it is in `problems`.

    Args:
        inline: YAML text, or plain data.
    """
    profile = Profile()
    raw = inline
    if isinstance(inline, str):
        try:
            raw, found = parse_document(inline)
        except InvalidError as error:
            profile.problems += error.problems
            return profile
        profile.problems += found
    if not isinstance(raw, Mapping):
        profile.problems.append(Problem((), f"must be a profile, not {kind_of(raw)}"))
        return profile
    _check_keys(profile, (), raw, _PROFILE_KEYS)
    policies = raw.get("policies")
    if not isinstance(policies, list | tuple) or not policies:
        profile.problems.append(Problem(("policies",), "must be a list with at least one policy"))
        return profile
    for index, policy in enumerate(policies):
        _Reader(profile, ("policies", index)).read(policy)
    return profile


@define
class _Reader:
    """Reads one policy of a profile."""

    profile: Profile
    path: Path

    def read(self, raw: object) -> None:
        if not isinstance(raw, Mapping):
            self._complain((), f"must be a mapping, not {kind_of(raw)}")
            return
        kind = raw.get("type")
        if not isinstance(kind, str) or kind not in _KEYS:
            near = suggest(kind, _KEYS) if isinstance(kind, str) else ""
            self._complain(("type",), f"must be one of {', '.join(_KEYS)}, not {show(kind)}{near}")
            return
        _check_keys(self.profile, self.path, raw, (*_COMMON_KEYS, *_KEYS[kind]))
        name = raw.get("name")
        label = _NAME.sub("-", name) if isinstance(name, str) else ""
        label = label or f"policies[{self.path[-1]}]"
        priority = self._whole(raw, "priority", default=0, least=-_LARGEST)
        if kind == "capability":
            self._capability(raw, label, priority)
        elif kind == "approval":
            self._approval(raw, label, priority)
        else:
            self._limit(raw, label)

    def _capability(self, raw: Mapping[Any, Any], label: str, priority: int) -> None:
        if not {"allowed_actions", "denied_actions"} & set(raw):
            self._complain((), "names neither allowed_actions nor denied_actions")
        for key, ruling in (("denied_actions", Ruling.DENY), ("allowed_actions", Ruling.ALLOW)):
            self._line(label, ruling, priority, self._actions(raw, key))

    def _approval(self, raw: Mapping[Any, Any], label: str, priority: int) -> None:
        if self._whole(raw, "min_approvals", default=1, least=1) > 1:
            self._complain(
                ("min_approvals",), "must be 1: here one person decides, and more cannot be asked"
            )
        self._line(label, Ruling.APPROVE, priority, self._actions(raw, "actions", required=True))

    def _limit(self, raw: Mapping[Any, Any], label: str) -> None:
        calls = self._whole(raw, "max_calls", default=None, least=1)
        window = 60.0
        try:
            window = parse_duration(raw.get("window"))
        except ValueError as error:
            self._complain(("window",), f"{error}, not {show(raw.get('window'))}")
        tools = []
        for index, action in self._actions(raw, "actions", required=True):
            kind, _, pattern = action.rpartition(":")
            if kind in ("", Kind.TOOL) and not _qualified(pattern):
                tools.append(pattern)
            else:
                wanted = "must be tool: and a tool's own name; other limits go to rateLimits"
                self._complain(("actions", index), wanted)
        if tools:
            self.profile.limits.append(
                RateLimit(
                    name=label if label[:1].isalnum() and "[" not in label else None,
                    tools=tuple(tools),
                    per=(Per.AGENT,),
                    calls=calls,
                    window=window,
                )
            )

    def _line(
        self, label: str, ruling: Ruling, priority: int, actions: Iterable[tuple[int, str]]
    ) -> None:
        patterns = [action for _, action in actions]
        if patterns:
            compiled = Actions.of(patterns, permits=ruling is Ruling.ALLOW)
            self.profile.lines.append(
                Line(name=label, ruling=ruling, priority=priority, actions=compiled)
            )

    def _actions(
        self, raw: Mapping[Any, Any], key: str, *, required: bool = False
    ) -> Sequence[tuple[int, str]]:
        """The actions that may be those of calls, each with its place in the list."""
        listed = raw.get(key)
        if listed is None and not required:
            return ()
        if not isinstance(listed, list | tuple) or (required and not listed):
            self._complain((key,), "must be a list of actions such as tool:browser_*")
            return ()
        return list(self._known(key, listed))

    def _known(self, key: str, listed: Sequence[object]) -> Iterator[tuple[int, str]]:
        for index, action in enumerate(listed):
            if not isinstance(action, str):
                self._complain((key, index), f"must be a string, not {kind_of(action)}")
                continue
            complaint = check_glob(action)
            kind = _KIND.match(action)
            if complaint:
                self._complain((key, index), complaint)
            elif kind is not None and kind[1] not in set(Kind):
                self.profile.notes.append(f"the action {action} is none of an MCP call")
            elif kind is None and not action.startswith(("*", "?", "[")):
                self._complain((key, index), "must begin with tool:, resource: or prompt:")
            else:
                yield index, action

    def _whole(self, raw: Mapping[Any, Any], key: str, *, default: int | None, least: int) -> int:
        value = raw.get(key, default)
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or not least <= value <= _LARGEST:
            self._complain((key,), f"must be a whole number from {least} to {_LARGEST}")
            return max(least, 0)
        assert isinstance(value, int)
        return value

    def _complain(self, keys: Path, message: str) -> None:
        self.profile.problems.append(Problem((*self.path, *keys), message))


def _check_keys(profile: Profile, path: Path, raw: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in raw:
        if key not in known:
            complaint = f"is not a known key{suggest(str(key), known)}"
            profile.problems.append(Problem((*path, str(key)), complaint))


def _qualified_names(subject: Subject) -> tuple[str, ...]:
    # kars writes `my_server.tool` for the server my-server; the router itself `my-server__tool`.
    server = subject.server
    return (
        f"{subject.kind}:{server.replace('-', '_')}.{subject.name}",
        f"{subject.kind}:{server}.{subject.name}",
        f"{subject.kind}:{server}__{subject.name}",
    )


def _qualified(name: str) -> bool:
    return "." in name or "__" in name
