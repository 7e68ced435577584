"""`kars mcp`: `McpServer` resources in a cluster.

Owns the commands, and what the user is asked before something is deleted. How a manifest comes
about is `mcp_manifest`'s, how one is shown `mcp_view`'s, what the cluster is asked `mcp_cluster`'s.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from kars_router.cli.cluster import (
    ask,
    cluster_options,
    connection_of,
    without_bookkeeping,
)
from kars_router.cli.egress_options import check_namespace, check_pairs
from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.mcp_cluster import (
    apply_server,
    delete_server,
    get_server,
    list_servers,
    place,
    users_of,
)
from kars_router.cli.mcp_manifest import (
    DEFAULT_NAMESPACE,
    FIELDS,
    Given,
    field_flags,
    names_of,
    wanted_of,
)
from kars_router.cli.mcp_view import listed, mapping, shown
from kars_router.cli.output import Output, clean, emit, output_option
from kars_router.errors import ConfigError
from kars_router.kube.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable


F = TypeVar("F", bound="Callable[..., object]")

_OWNED: Final = re.compile(r'conflicts? with "(?P<manager>[^"]*)"')

# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_LABEL_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL: Final = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}\Z")
_LABEL_VALUE: Final = re.compile(rf"({_LABEL_NAME})?\Z")


def _labels(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    pairs = check_pairs(context, parameter, values)
    for key, value in pairs.items():
        if not _LABEL.match(key) or not _LABEL_VALUE.match(value):
            raise click.BadParameter(f"no label can be {key}={value}", param=parameter)
    return pairs


_namespace = click.option(
    "-n",
    "--namespace",
    metavar="NS",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    callback=check_namespace,
    help="The namespace.",
)


@click.group(
    "mcp",
    epilog=examples(
        ("Make one", "kars mcp apply web --url https://mcp.example.com/ --allowed-tool '*'"),
        ("See what the operator says of it", "kars mcp get web"),
    ),
)
def command() -> None:
    """Look after the McpServer resources of a cluster.

    An McpServer says where an MCP server is and what agents may do with it; a sandbox refers to it
    by its name, and the operator does the rest.
    """


def _flags(command: F) -> F:
    """The flags that make a spec, one for each of `FIELDS`."""
    for option in reversed(
        (
            click.option("--url", metavar="URL", help="Where the server is."),
            click.option(
                "--production-mode/--no-production-mode",
                "production_mode",
                default=None,
                help="Insist on https and on an issuer of tokens.",
            ),
            click.option("--oauth-issuer", metavar="URL", help="Who issues tokens for it."),
            click.option("--oauth-audience", metavar="TEXT", help="What tokens are made out for."),
            click.option("--oauth-resource", metavar="URL", help="The resource that is asked for."),
            click.option(
                "--scope", metavar="TEXT", multiple=True, help="A scope to ask for; repeatable."
            ),
            click.option(
                "--allowed-tool",
                metavar="PATTERN",
                multiple=True,
                help="Tools that agents may see and call; repeatable. None means no tool.",
            ),
            click.option(
                "--allowed-sandbox-label",
                metavar="KEY=VALUE",
                multiple=True,
                callback=_labels,
                help="A label that a sandbox must have to refer to it; repeatable.",
            ),
            click.option("--display-name", metavar="TEXT", help="A name for people."),
            click.option(
                "--bearer-from-env",
                metavar="NAME",
                help="The variable of the router that holds the bearer token.",
            ),
        )
    ):
        command = option(command)
    return command


@command.command(
    "apply",
    epilog=examples(
        (
            "A server, and the tools that agents may use",
            "kars mcp apply web --url https://mcp.example.com/ --allowed-tool 'read_*'",
        ),
        (
            "From a file, first without changing anything",
            "kars mcp apply --from-file web.yaml --dry-run",
        ),
    ),
)
@click.argument("name", metavar="[NAME]", required=False)
@_flags
@click.option(
    "--from-file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A YAML or JSON file with the resource or its spec; - for stdin. Flags come on top.",
)
@click.option(
    "-n",
    "--namespace",
    metavar="NS",
    callback=check_namespace,
    help=f"The namespace; {DEFAULT_NAMESPACE} if the file names none either.",
)
@click.option("--dry-run", is_flag=True, help="Have the cluster check it, but change nothing.")
@click.option(
    "--force-conflicts", is_flag=True, help="Take fields that somebody else has set otherwise."
)
@cluster_options
@output_option
@click.pass_context
def apply(
    context: click.Context,
    /,
    *,
    name: str | None,
    file: Path | None,
    namespace: str | None,
    dry_run: bool,
    force_conflicts: bool,
    kubeconfig: Path | None,
    cluster: str | None,
    output: Output,
    **flags: Any,
) -> None:
    """Make an McpServer what the flags and the file say.

    It is checked before the cluster hears of it, and every mistake is named. What was applied with
    this command before and is not given now is taken away again; what others have set stays.

    \b
    Exit codes:
      0  the cluster has it
      1  it is not valid, the cluster refuses it, or others have set its fields otherwise
      2  wrong usage
      3  the cluster did not answer, or knows no McpServer
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    assert flags.keys() == FIELDS.keys()
    given = Given(name=name, namespace=namespace, file=file, flags=flags)
    wanted = wanted_of(given)
    for warning in wanted.warnings:
        click.echo(f"kars: warning: {clean(warning)}", err=True)
    connection = connection_of(kubeconfig, cluster)
    question = functools.partial(
        apply_server, wanted=wanted, force=force_conflicts, dry_run=dry_run
    )
    try:
        applied = ask(connection, question)
    except ConfigError as error:
        raise _by_flags(error, field_flags(given)) from error
    if isinstance(applied, ConflictError):
        _say_conflicts(applied)
        context.exit(FOUND)
    aside = " (dry run)" if dry_run else ""
    emit(
        without_bookkeeping(applied.manifest),
        output,
        lambda: f"McpServer {place(applied.manifest)} {applied.what}{aside}",
    )


@command.command(
    "list",
    epilog=examples(
        ("Of one namespace", "kars mcp list -n tools"),
        ("Of all, for a program", "kars mcp list -A -o json"),
    ),
)
@_namespace
@click.option("-A", "--all-namespaces", is_flag=True, help="Those of every namespace.")
@cluster_options
@output_option
def list_command(
    *,
    namespace: str,
    all_namespaces: bool,
    kubeconfig: Path | None,
    cluster: str | None,
    output: Output,
) -> None:
    """List the McpServers of a namespace, and whether routers use them.

    \b
    Exit codes:
      0  they are listed
      3  there is no kubeconfig that can be used, or the cluster did not answer, or knows no
         McpServer
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    one = None if all_namespaces else namespace
    question = functools.partial(list_servers, namespace=one)
    found = ask(connection_of(kubeconfig, cluster), question)
    emit(
        [without_bookkeeping(each) for each in found],
        output,
        lambda: listed(found, dt.datetime.now(dt.UTC), namespace=one),
    )


@command.command(
    "get",
    epilog=examples(
        ("For people", "kars mcp get web -n tools"),
        ("As a file that can be applied again", "kars mcp get web -o yaml > web.yaml"),
    ),
)
@click.argument("name")
@_namespace
@cluster_options
@output_option
def get(
    *,
    name: str,
    namespace: str,
    kubeconfig: Path | None,
    cluster: str | None,
    output: Output,
) -> None:
    """Show one McpServer, and what the operator says of it.

    What `-o yaml` prints can be given to `kars mcp apply --from-file` again.

    \b
    Exit codes:
      0  it is there
      1  it is not
      3  the cluster did not answer, or knows no McpServer
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    question = functools.partial(get_server, name=name, namespace=namespace)
    found = ask(connection_of(kubeconfig, cluster), question)
    emit(without_bookkeeping(found), output, lambda: shown(found, dt.datetime.now(dt.UTC)))


@command.command(
    "delete",
    epilog=examples(
        ("Name the sandboxes that use it, and ask", "kars mcp delete web -n tools"),
        ("In a script", "kars mcp delete web --no-prompt"),
    ),
)
@click.argument("name")
@_namespace
@click.option("--no-prompt", is_flag=True, help="Do not ask.")
@cluster_options
@click.pass_context
def delete(
    context: click.Context,
    *,
    name: str,
    namespace: str,
    no_prompt: bool,
    kubeconfig: Path | None,
    cluster: str | None,
) -> None:
    """Delete an McpServer; sandboxes that refer to it go on without it.

    \b
    Exit codes:
      0  it is deleted
      1  it is not there, or was not to be deleted after all
      2  there is no terminal to ask on; add --no-prompt
      3  the cluster did not answer, or knows no McpServer
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    if not no_prompt and not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on; add --no-prompt")
    connection = connection_of(kubeconfig, cluster)
    server = ask(connection, functools.partial(get_server, name=name, namespace=namespace))
    if not no_prompt:
        users = ask(connection, functools.partial(users_of, name=name, namespace=namespace))
        url = mapping(server.get("spec")).get("url") or "no URL"
        said = f"; {names_of(users)} refer to it" if users else ""
        if not click.confirm(clean(f"Delete McpServer {place(server)} ({url}){said}?"), err=True):
            context.exit(FOUND)
    left = ask(connection, functools.partial(delete_server, server=server))
    if left:
        click.echo(f"McpServer {place(server)} is being deleted; it waits for {clean(left)}")
    else:
        click.echo(f"McpServer {place(server)} deleted")


def _say_conflicts(error: ConflictError) -> None:
    for cause in error.causes:
        found = _OWNED.search(cause.message)
        owner = f"set by {found['manager']}" if found else cause.message
        click.echo(clean(f"kars: {cause.field.lstrip('.')}: {owner}"), err=True)
    if not error.causes:
        click.echo(clean(f"kars: {error.message}"), err=True)
    click.echo("kars: nothing was changed; --force-conflicts takes these fields", err=True)


def _by_flags(error: ConfigError, flags: Mapping[str, str]) -> ConfigError:
    """What the server says of a field, said of the flag that set it."""
    told = []
    for problem in error.problems:
        field, colon, message = problem.partition(":")
        flag = next(
            (flag for path, flag in flags.items() if re.match(rf"{re.escape(path)}(\W|$)", field)),
            field,
        )
        told.append(f"{flag}{colon}{message}")
    return ConfigError(told, error.source)
