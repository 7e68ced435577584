"""`kars egress`: what egress a server needs, and why; the group of commands about egress."""

from __future__ import annotations

from typing import Any

import click

from kars_router.cli import egress_probe, egress_render, egress_verify
from kars_router.cli.egress_options import check_namespace, domain_option
from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, emit, output_option, table
from kars_router.egress import Explanation, Place, Scope, explain, summary
from kars_router.model import ServerInfo
from kars_router.plugins import Plugins
from kars_router.telemetry import configure_logging


@click.group(
    "egress",
    epilog=examples(
        ("Which rule does this server need?", "kars egress explain https://mcp.example.com/"),
        ("Does the cluster open that and no more?", "kars egress verify -n agents"),
    ),
)
def command() -> None:
    """Explain what egress servers need, and whether a cluster grants that and no more."""


command.add_command(egress_render.command)
command.add_command(egress_verify.command)
command.add_command(egress_probe.command)


@command.command(
    "explain",
    epilog=examples(
        ("A public server", "kars egress explain https://mcp.example.com/"),
        (
            "A Service, as seen from a namespace",
            "kars egress explain http://browser:8080/mcp -n agents -o yaml",
        ),
    ),
)
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option(
    "--namespace",
    "-n",
    metavar="NS",
    default="default",
    show_default=True,
    callback=check_namespace,
    help="The sandbox's namespace, in which bare names are looked up.",
)
@domain_option
@output_option
@click.pass_context
def explain_urls(
    context: click.Context,
    *,
    urls: tuple[str, ...],
    namespace: str,
    cluster_domain: str,
    output: Output,
) -> None:
    """Say which NetworkPolicy rule a server's URL needs, and why.

    Nothing is looked up: a Service is taken to have the pods of its whole namespace behind it, at
    the port of the URL. The operator reads Services, and opens no more than their pods.

    \b
    Exit codes:
      0  every URL is explained
      1  a URL leads nowhere; the others are explained all the same
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    configure_logging(level="error", style="console")
    plugins = Plugins.load()
    place = Place(namespace=namespace, cluster_domain=cluster_domain)
    answers = []
    for url in urls:
        # What is no UTF-8 on the command line could not be printed again.
        text = url.encode("utf-8", "backslashreplace").decode()
        answers.append(_answer(explain(text, namespace, cluster_domain), plugins, place))
    emit(
        answers,
        output,
        lambda: table(
            ("URL", "SCOPE", "HOST", "PORT", "RULE", "WHY"), [_row(answer) for answer in answers]
        ),
    )
    if any(answer["scope"] is Scope.INVALID for answer in answers):
        context.exit(FOUND)


def _answer(explained: Explanation, plugins: Plugins, place: Place) -> dict[str, Any]:
    """One object of the answer; plugins may want other rules than the one that was derived."""
    answer = explained.plain()
    if explained.scope is Scope.INVALID:
        return answer
    derived = [] if explained.rule is None else [explained.rule]
    wanted = list(plugins.egress_rules(ServerInfo(name="", url=explained.url), place))
    if wanted != derived:
        answer["rule"] = wanted[0] if wanted else None
        answer["reason"] += " Plugins have changed the rules."
        if len(wanted) > 1:
            answer["rules"] = wanted
    return answer


def _row(answer: dict[str, Any]) -> tuple[object, ...]:
    rules = answer.get("rules") or ([answer["rule"]] if answer["rule"] else [])
    said = "; ".join(summary(rule) for rule in rules)
    if not said and answer["scope"] is not Scope.INVALID:
        said = "none needed"
    return (
        answer["url"],
        answer["scope"],
        answer["host"],
        answer["port"],
        said,
        answer["reason"],
    )
