"""`kars egress probe`: tries, from where it runs, what can be connected to and what cannot."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kars_router.cli.egress_findings import Destination, Findings
from kars_router.cli.errors import FOUND, UNDETERMINED
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, emit, output_option, table
from kars_router.config.load import default_path
from kars_router.egress.urls import InvalidUrlError, Target, parse
from kars_router.errors import UserError
from kars_router.model import ServerInfo

if TYPE_CHECKING:
    from kars_router.cli.egress_connect import Attempt

_METADATA: Final = "169.254.169.254:80"
_PORT: Final = re.compile(r".+:[0-9]{1,5}\Z")
_AT_ONCE: Final = 16
# Nobody is there (RFC 5737, RFC 3849): whoever answers does so in the place of everybody.
NOBODY: Final = (("192.0.2.1", 9), ("2001:db8::1", 9))


def _pair(text: str) -> tuple[str, int]:
    """Reads `HOST:PORT`.

    Raises:
        ValueError: it is no such thing.
    """
    if not _PORT.match(text) or set(text) & set("/?#@"):
        raise ValueError(f"{text} is not of the form HOST:PORT")
    target = parse(f"http://{text}")
    return target.host, target.port


def _denied(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    try:
        return tuple(_pair(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "probe",
    epilog=examples(
        ("In the router's container", "kars egress probe -c /etc/kars/kars.yaml"),
        (
            "In the agent's: the router, and nothing else",
            "kars egress probe http://127.0.0.1:8443/mcp --denied 10.0.0.1:22",
        ),
    ),
)
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The router's configuration, which declares what is reachable; $KARS_CONFIG or "
    "./kars.yaml if neither it nor a URL is given.",
)
@click.option(
    "--denied",
    metavar="HOST:PORT",
    multiple=True,
    callback=_denied,
    help="What must not be reachable, beside the defaults; may be repeated.",
)
@click.option(
    "--defaults/--no-defaults",
    default=True,
    show_default=True,
    help=f"Whether the cloud's metadata service ({_METADATA}) and the cluster's API server must "
    "not be reachable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 120),
    default=5.0,
    show_default=True,
    help="How long to wait for an answer. A packet that is lost is sent again after 1 and 3 s.",
)
@output_option
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    urls: tuple[str, ...],
    config: Path | None,
    denied: tuple[tuple[str, int], ...],
    defaults: bool,
    seconds: float,
    output: Output,
) -> None:
    """Try from here what the declared servers need, and what must be denied.

    To be run where the egress is: in the router's container, with its configuration, or in the
    agent's, with the URL of the router. TCP connections are made and closed at once; nothing is
    sent. That no answer comes shows that nothing gets through only if something else did: the
    answer says so where nothing outside of the pod was reached. Two addresses where nobody is
    (192.0.2.1, 2001:db8::1) are tried as well, since whoever answers there answers for everybody.

    \b
    Exit codes:
      0  what is declared can be connected to, and what must be denied cannot
      1  something declared cannot be connected to, or something that must be denied can
      3  it could not be determined, such as where a name cannot be looked up
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    import trio

    wanted = _declared(urls, config)
    others = _by_default(os.environ) if defaults else {}
    others |= dict.fromkeys(denied, "--denied")
    for key in denied:
        if key in wanted:
            raise click.UsageError(f"--denied {key[0]}:{key[1]} is declared; it cannot be both")
    destinations = [
        *(
            Destination(host=host, port=port, expected=True, whose=tuple(whose))
            for (host, port), whose in wanted.items()
        ),
        *(
            Destination(host=host, port=port, expected=False, whose=(what,))
            for (host, port), what in others.items()
            if (host, port) not in wanted
        ),
    ]
    if not destinations:
        raise UserError("there is nothing to try: no server has a URL, and nothing must be denied")
    nobody = [Destination(host=host, port=port, expected=False, whose=()) for host, port in NOBODY]
    attempts = trio.run(_try_all, [*destinations, *nobody], seconds)
    found = Findings(
        rows=tuple(zip(destinations, attempts[: len(destinations)], strict=True)),
        nobody=tuple(attempts[len(destinations) :]),
    )
    emit(
        {"results": [_plain(found, *row) for row in found.rows], "notes": found.notes()},
        output,
        lambda: "\n".join([_table(found), *found.notes()]),
    )
    verdicts = {found.verdict(*row) for row in found.rows}
    if "unexpected" in verdicts:
        context.exit(FOUND)
    if "unclear" in verdicts:
        context.exit(UNDETERMINED)


def _declared(urls: Sequence[str], config: Path | None) -> dict[tuple[str, int], list[str]]:
    """What can be connected to, with the names of those that are there."""
    path = config or (None if urls else default_path(os.environ))
    needs = [(url, "URL") for url in urls]
    if path is not None:
        for server in _needs(path):
            issuer = (server.oauth and server.oauth.issuer) or ""
            needs += [(url, server.name) for url in (server.url, issuer) if url]
    elif not urls:
        raise UserError("name the router's configuration with -c, or the URLs to try")
    found: dict[tuple[str, int], list[str]] = {}
    for url, whose in needs:
        target = _target(url, whose)
        names = found.setdefault((target.host, target.port), [])
        if whose not in names:
            names.append(whose)
    return found


def _needs(path: Path) -> Sequence[ServerInfo]:
    from kars_router.cli.egress_declared import router_needs
    from kars_router.cli.egress_files import read_files

    # Not as the router reads it: the secrets that it names may not be here.
    found = read_files([path], "default").routers
    if not found:
        raise UserError(f"{path}: holds no configuration of a router")
    return [need for config in found.values() for need in router_needs(config)]


def _target(url: str, whose: str) -> Target:
    try:
        return parse(url)
    except InvalidUrlError as error:
        raise UserError(f"{whose}: {error}") from None


def _by_default(environ: Mapping[str, str]) -> dict[tuple[str, int], str]:
    found = {_pair(_METADATA): "the cloud's metadata service"}
    host = environ.get("KUBERNETES_SERVICE_HOST", "")
    port = environ.get("KUBERNETES_SERVICE_PORT", "") or "443"
    if host:
        try:
            found[_pair(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")] = (
                "the cluster's API server"
            )
        except ValueError as error:
            raise UserError(f"KUBERNETES_SERVICE_HOST and _PORT: {error}") from None
    return found


async def _try_all(destinations: Sequence[Destination], seconds: float) -> list[Attempt]:
    import trio

    from kars_router.cli.egress_connect import attempt

    found: dict[int, Attempt] = {}
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def one(index: int, there: Destination) -> None:
        async with limit:
            found[index] = await attempt(there.host, there.port, seconds)

    async with trio.open_nursery() as nursery:
        for index, there in enumerate(destinations):
            nursery.start_soon(one, index, there)
    return [found[index] for index in range(len(destinations))]


def _plain(found: Findings, there: Destination, tried: Attempt) -> dict[str, Any]:
    return {
        "destination": str(there),
        "for": list(there.whose),
        "expected": "allowed" if there.expected else "denied",
        "outcome": tried.ending,
        "verdict": found.verdict(there, tried),
        "addresses": list(tried.addresses),
        "reason": tried.said,
    }


def _table(found: Findings) -> str:
    return table(
        ("DESTINATION", "FOR", "EXPECTED", "OUTCOME", "VERDICT", "WHY"),
        [
            (
                there,
                ", ".join(there.whose),
                "allowed" if there.expected else "denied",
                tried.ending,
                found.verdict(there, tried),
                tried.said,
            )
            for there, tried in found.rows
        ],
    )
