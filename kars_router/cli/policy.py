"""`kars policy test`: what the policies of a file say of one call, and why.

Asks the governors that a router would ask, with nothing of what a running one has counted. Sends
nothing anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
import msgspec

from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option, table
from kars_router.config.document import decode, parse_document
from kars_router.config.globs import matches_any
from kars_router.config.load import build
from kars_router.config.problems import (
    InvalidConfigError,
    InvalidError,
    Problem,
    kind_of,
    show,
    suggest,
)
from kars_router.config.schema import Config
from kars_router.hookspecs import GovernanceSettings
from kars_router.model import Decision, GovernedCall, Ruling

if TYPE_CHECKING:
    from kars_router.barriers import GuardedGovernor

_PARTS = {
    "server": "",
    "tool": "",
    "resource": "",
    "prompt": "",
    "arguments": {},
    "annotations": {},
    "agent": "test",
    "client": "",
    "subject": "",
    "scopes": [],
    "time": "",
}
_MATCHED = {True: "yes", False: "no", None: "-"}
_METHODS = {"tool": "tools/call", "resource": "resources/read", "prompt": "prompts/get"}


@click.group(
    "policy",
    epilog=examples(
        (
            "Would this call pass, and why?",
            'kars policy test kars.yaml --call \'{"server": "web", "tool": "fetch"}\'',
        ),
    ),
)
def command() -> None:
    """Explain what policies decide about a call."""


@command.command(
    "test",
    epilog=examples(
        (
            "Would this call pass, and why?",
            'kars policy test kars.yaml --call \'{"server": "web", "tool": "fetch"}\'',
        ),
        (
            "A prompt, for a program, by a file that is a policy alone",
            'kars policy test policy.yaml -o json --call \'{"server": "web", "prompt": "review"}\'',
        ),
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--call",
    "text",
    required=True,
    metavar="JSON",
    help='The call, as in {"server": "web", "tool": "fetch", "arguments": {}}.',
)
@output_option
@click.pass_context
def test(context: click.Context, *, file: Path, text: str, output: Output) -> None:
    """Say what would be decided about one call, by which rule, and why.

    FILE is a kars.yaml, or a ToolPolicy: the whole resource or its spec. The call names a server,
    one of tool, resource and prompt, and as much as matters of arguments, annotations, agent,
    client, subject, scopes and time (RFC 3339; now if left out). Nothing is sent, and limits count
    from zero.

    \b
    Exit codes:
      0  the call is allowed
      1  it is denied or held for approval, or the file is not valid
      2  the call is not described as it has to be
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    call = _call(text)
    config = _config(file)
    answer = _answer(config, call)
    emit(answer, output, lambda: _table(answer))
    context.exit(0 if answer["ruling"] == Ruling.ALLOW.value else FOUND)


def _config(file: Path) -> Config:
    """The configuration that a file makes, whichever of the three it is.

    Raises:
        InvalidConfigError: with every problem.
    """
    try:
        raw, problems = parse_document(decode(_read(file)))
    except InvalidError as error:
        raise InvalidConfigError(error.problems, str(file)) from None
    if isinstance(raw, Mapping) and raw.get("kind") == "ToolPolicy":
        path: tuple[str, ...] = ("spec",)
        spec = raw.get("spec")
    elif isinstance(raw, Mapping) and not {"servers", "policies", "plugins"} & set(raw):
        path, spec = (), raw
    else:
        return build(raw, problems=problems, source=str(file), base=file.parent)
    try:
        policies = build({"servers": {"any": {"command": "any"}}, "policies": [spec]}).policies
        if problems:
            raise InvalidConfigError(problems, str(file))
        return Config(policies=policies)
    except InvalidConfigError as error:
        found = [_moved(each, path) for each in error.found]
        raise InvalidConfigError(found, str(file)) from None


def _moved(problem: Problem, path: tuple[str, ...]) -> Problem:
    """A problem of `policies[0]`, as seen from the file of the policy."""
    if problem.keys[:2] == ("policies", 0):
        return attrs.evolve(problem, keys=(*path, *problem.keys[2:]))
    return problem


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        message = f"cannot be read: {error.strerror or type(error).__name__}"
        raise InvalidConfigError([Problem((), message)], str(file)) from None


def _call(text: str) -> GovernedCall:
    """The call that was described.

    Raises:
        click.UsageError: it was not described as it has to be.
    """
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _usage(f"is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _usage(f"must be an object, not {kind_of(raw)}")
    for key, value in raw.items():
        if key not in _PARTS:
            raise _usage(f"has the unknown member {show(key)}{suggest(key, _PARTS)}")
        wanted = type(_PARTS[key])
        if not isinstance(value, wanted):
            names = {str: "a string", dict: "an object", list: "a list of strings"}
            raise _usage(f"must have {names[wanted]} as {key!r}, not {kind_of(value)}")
    parts = {**_PARTS, **raw}
    named = [key for key in _METHODS if parts[key]]
    if not parts["server"] or len(named) != 1:
        raise _usage("must name a server, and one of tool, resource and prompt")
    if not all(isinstance(scope, str) for scope in parts["scopes"]):
        raise _usage("must have a list of strings as 'scopes'")
    [kind] = named
    name, arguments = parts[kind], parts["arguments"]
    params = {"uri": name} if kind == "resource" else {"name": name, "arguments": arguments}
    return GovernedCall(
        id="test",
        agent=parts["agent"],
        server=parts["server"],
        method=_METHODS[kind],
        name=name,
        arguments=arguments,
        params=msgspec.json.encode(params),
        annotations=parts["annotations"],
        client=parts["client"],
        subject=parts["subject"],
        scopes=tuple(parts["scopes"]),
        time=_time(parts["time"]),
    )


def _time(text: str) -> float:
    if not text:
        return time.time()
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise _usage("must have a time such as 2026-05-01T12:00:00Z, with its zone")
    return when.timestamp()


def _usage(complaint: str) -> click.UsageError:
    return click.UsageError(f"--call {complaint}")


def _answer(config: Config, call: GovernedCall) -> dict[str, Any]:
    """What the governors say, as plain data."""
    import trio

    from kars_router.plugins import Plugins
    from kars_router.policy import fold
    from kars_router.telemetry import configure_logging

    configure_logging(level="error", style="console")
    plugins = Plugins.load(
        blocked=config.plugins.blocked,
        required=config.plugins.required,
        options={name: dict(options) for name, options in config.plugins.options.items()},
    )
    governors = plugins.governors(GovernanceSettings(policies=config.policies))
    said = trio.run(_ask, governors, call, config.governance.deadline)
    decided = fold(each for each in (_admission(config, call), *said) if each is not None)
    verdicts = [
        {
            "governor": governor.plugin,
            **_plain(decision),
            "steps": [dict(step) for step in _steps(governor, call)],
        }
        for governor, decision in zip(governors, said, strict=True)
    ]
    return {**_plain(decided), "source": decided.source, "governors": verdicts}


def _admission(config: Config, call: GovernedCall) -> Decision | None:
    """A denial if the server's patterns keep agents from seeing the tool; None otherwise."""
    server = config.servers.get(call.server)
    tools = call.method == "tools/call"
    if not config.servers or (server and not tools):
        return None  # a policy alone knows no servers
    if server is None:
        reason = "There is no server of this name in the file."
    elif matches_any(call.name, server.allowed_tools):
        return None
    else:
        reason = "No pattern in allowedTools of the server fits the tool, so that nobody sees it."
    return Decision(ruling=Ruling.DENY, code="not_admitted", reason=reason, source="allowlist")


async def _ask(
    governors: Sequence[GuardedGovernor], call: GovernedCall, seconds: float
) -> list[Decision | None]:
    return [await governor.before_call(call, seconds=seconds) for governor in governors]


def _plain(decision: Decision | None) -> dict[str, Any]:
    """A decision as plain data; one that is no opinion has the ruling None."""
    if decision is None:
        return {"ruling": None, "code": "", "rule": "", "reason": "", "notes": []}
    return {
        "ruling": decision.ruling.value,
        "code": decision.code if decision.ruling is Ruling.DENY else "",
        "rule": decision.rule,
        "reason": decision.reason,
        "notes": list(decision.notes),
    }


def _steps(governor: GuardedGovernor, call: GovernedCall) -> Sequence[Mapping[str, Any]]:
    """What became of each rule, from a governor that can say it."""
    explain = getattr(governor.governor, "explain", None)
    return () if explain is None else explain(call)


def _table(answer: Mapping[str, Any]) -> str:
    lines = [_verdict(answer)]
    lines += [f"  {key}: {answer[key]}" for key in ("rule", "code", "reason") if answer[key]]
    lines += [f"  note: {note}" for note in answer["notes"]]
    lines.append(f"  decided by: {answer['source'] or 'nobody'}")
    lines = [clean(line) for line in lines]
    for governor in answer["governors"]:
        lines += ["", clean(f"{governor['governor']}: {_verdict(governor)}")]
        if governor["steps"]:
            rows = [
                (step["rule"], step["effect"], _MATCHED[step["matched"]], step["why"])
                for step in governor["steps"]
            ]
            lines.append(table(("RULE", "EFFECT", "MATCHED", "WHY"), rows))
    return "\n".join(lines)


def _verdict(decision: Mapping[str, Any]) -> str:
    words = {"allow": "allowed", "approve": "held for approval", "deny": "denied"}
    return words.get(str(decision["ruling"]), "no opinion")
