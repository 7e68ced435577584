"""`kars guard`: the pod's init container, which leaves the router as the agent's only way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import attrs
import click

from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.nft import Nft, is_machines_own_network
from kars_router.cli.output import clean
from kars_router.errors import UndeterminedError, UserError
from kars_router.guard import (
    ADMIN_PORT,
    AGENT,
    ROUTER,
    TABLE,
    Guard,
    Uids,
    dns_server,
    nameservers,
    port,
    ruleset,
)

RESOLV_CONF: Final = Path("/etc/resolv.conf")
_NONE: Final = "none"
_SHOWN: Final = 4  # differences; whoever wants all of them has `nft list table`
_T = TypeVar("_T")


def _reads(read: Callable[[str], _T]) -> Callable[..., tuple[_T, ...]]:
    """A callback for an option that may be given several times."""

    def convert(_: click.Context, __: click.Parameter, value: Sequence[str]) -> tuple[_T, ...]:
        try:
            return tuple(read(each) for each in value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert


def _denied(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> object:
    if _NONE not in value:
        return _reads(port)(context, parameter, value)
    if len(value) > 1:
        raise click.BadParameter(f"must be ports, or {_NONE} alone")
    return ()


def _router(_: click.Context, __: click.Parameter, value: str) -> int:
    try:
        uids = Uids.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if uids.first != uids.last:
        raise click.BadParameter("must be one user; name others with --allow-uid")
    return uids.first


@click.command(
    "guard",
    epilog=examples(
        ("Print the rules for the default users", "kars guard --dry-run"),
        ("Put them in force, and let the agent look names up", "kars guard --allow-dns"),
        ("Are these rules in force?", "kars guard --router-uid 1001 --agent-uid 1000 --check"),
    ),
)
@click.option(
    "--router-uid",
    metavar="UID",
    default=str(ROUTER),
    show_default=True,
    callback=_router,
    help="The router's user, whom the rules leave to the NetworkPolicy.",
)
@click.option(
    "--agent-uid",
    "agents",
    metavar="UID[-UID]",
    multiple=True,
    default=(str(AGENT),),
    show_default=True,
    callback=_reads(Uids.parse),
    help="The agent's user. Users that are named nowhere are held in the same way. Repeatable.",
)
@click.option(
    "--allow-uid",
    "free",
    metavar="UID[-UID]",
    multiple=True,
    callback=_reads(Uids.parse),
    help="A further user that the rules leave alone, such as a mesh's proxy. Repeatable.",
)
@click.option("--allow-dns", is_flag=True, help="Let the agent ask the pod's DNS servers.")
@click.option(
    "--dns-server",
    "dns_servers",
    metavar="ADDRESS",
    multiple=True,
    callback=_reads(dns_server),
    help="With --allow-dns: this server instead of those of /etc/resolv.conf. Repeatable.",
)
@click.option(
    "--deny-loopback-port",
    "denied_ports",
    metavar="PORT",
    multiple=True,
    default=(str(ADMIN_PORT),),
    show_default=True,
    callback=_denied,
    help="A TCP port of the pod that only the router's user reaches; `none` for none. Repeatable.",
)
@click.option(
    "--answer-port",
    "answer_ports",
    metavar="PORT",
    multiple=True,
    callback=_reads(port),
    help="A TCP port at which the agent may answer from outside, such as for the kubelet's "
    "probes of its container. Repeatable.",
)
@click.option(
    "--whole-machine",
    is_flag=True,
    help="Also apply where the network is the machine's own, as in a VM that is the pod.",
)
@click.option("--dry-run", is_flag=True, help="Print the rules and change nothing.")
@click.option("--check", is_flag=True, help="Only say whether these rules are in force.")
@click.pass_context
def command(
    context: click.Context,
    *,
    router_uid: int,
    agents: tuple[Uids, ...],
    free: tuple[Uids, ...],
    allow_dns: bool,
    dns_servers: tuple[str, ...],
    denied_ports: tuple[int, ...],
    answer_ports: tuple[int, ...],
    whole_machine: bool,
    dry_run: bool,
    check: bool,
) -> None:
    """Leave the router as the agent's only way out of the pod.

    Puts network rules by user in force, by nftables, for IPv4 and IPv6: the router's user is left
    to the NetworkPolicy, everybody else reaches loopback and, with --allow-dns, DNS servers. Runs
    once, as the pod's first init container, and needs the capability NET_ADMIN.

    \b
    Exit codes:
      0  the rules are in force
      1  they are not, or are not the ones of these options
      2  options that contradict each other
      3  rules could not be applied or read; what was in force before still is
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    if dry_run and check:
        raise click.UsageError("--dry-run changes nothing and --check looks; say one of them")
    try:
        guard = Guard(
            router=router_uid,
            agents=agents,
            free=free,
            allow_dns=allow_dns,
            dns_servers=dns_servers,
            denied_ports=denied_ports,
            answer_ports=answer_ports,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if allow_dns and not dns_servers:
        guard = attrs.evolve(guard, dns_servers=_of_the_pod(RESOLV_CONF))
    if dry_run:
        click.echo(ruleset(guard), nl=False)
        return
    nft = Nft.find()
    if not check:
        _apply(guard, nft, whole_machine=whole_machine)
    wrong = _wrong(guard, nft)
    if wrong and check:
        click.echo(wrong)
        context.exit(FOUND)
    if wrong:
        raise UserError(f"{wrong}; something else changes them, find out what in this pod does")
    click.echo(f"in force: {guard.summary()}")


def _of_the_pod(file: Path) -> tuple[str, ...]:
    try:
        found = nameservers(file.read_text("utf-8", "backslashreplace"))
    except OSError as error:
        raise UndeterminedError(
            f"{file} cannot be read ({error.strerror or error}); name DNS servers with --dns-server"
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: {error}; name DNS servers with --dns-server") from None
    if not found:
        raise UserError(f"{file} names no DNS server; name one with --dns-server")
    return found


def _apply(guard: Guard, nft: Nft, *, whole_machine: bool) -> None:
    if is_machines_own_network() and not whole_machine:
        raise UserError(
            "the network here is the machine's own and no pod's, and the rules would cut it off; "
            "take hostNetwork out of the pod, or say --whole-machine where the machine is the pod"
        )
    nft.load(ruleset(guard))


def _wrong(guard: Guard, nft: Nft) -> str:
    """What is wrong with the rules in force, as part of a sentence; empty if nothing is."""
    changed = nft.differences(TABLE, partial(ruleset, guard, dormant=True))
    if changed is None:
        return f"not in force: there is no table inet {TABLE}"
    if not changed:
        return ""
    shown = [clean(line) for line in changed[:_SHOWN]]
    more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
    return f"other rules are in force in table inet {TABLE}: {'; '.join([*shown, *more])}"
