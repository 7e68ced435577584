"""`kars egress verify`: whether a cluster grants the declared egress, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kars_router.cli.cluster import ask, cluster_options, connection_of
from kars_router.cli.egress_options import check_namespace, operator_options
from kars_router.cli.errors import FOUND, UNDETERMINED
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, emit, output_option, table
from kars_router.telemetry import configure_logging

if TYPE_CHECKING:
    from kars_router.cli.egress_cluster import Verdict


@click.command(
    "verify",
    epilog=examples(
        ("One sandbox", "kars egress verify researcher -n agents"),
        ("All of the cluster, for a program", "kars egress verify -A -o json"),
    ),
)
@click.argument("sandboxes", metavar="[SANDBOX]...", nargs=-1)
@click.option(
    "-n",
    "--namespace",
    metavar="NS",
    callback=check_namespace,
    help="Where the KarsSandboxes are; the namespace of the kubeconfig without it.",
)
@click.option("-A", "--all-namespaces", is_flag=True, help="All KarsSandboxes of the cluster.")
@click.option(
    "--only-networkpolicies",
    is_flag=True,
    help="Do not mind policies of other kinds, which are not evaluated.",
)
@cluster_options
@operator_options()
@output_option
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    sandboxes: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    only_networkpolicies: bool,
    kubeconfig: Path | None,
    cluster: str | None,
    output: Output,
    **told: Any,
) -> None:
    """Say whether a cluster grants the declared egress of sandboxes, and no more.

    All NetworkPolicies that select a sandbox's pods are taken together and compared with the one
    that its KarsSandbox and its McpServers declare. What is open beyond that is named with the
    policy that opens it, and so is what is declared and not open. The options about the operator
    have to be those that it runs with. Policies of other kinds (AdminNetworkPolicy, Cilium,
    Calico) are not evaluated: where there are any, nothing is certain.

    \b
    Exit codes:
      0  what is declared is open, and nothing else
      1  something else is open, or something declared is not, or a reference leads to nothing;
         or there is no such sandbox
      3  it could not be determined: there is no kubeconfig that can be used, the cluster does not
         answer, or there are policies of kinds that are not evaluated
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    from kars_router.cli.egress_cluster import Question, is_loose, verify
    from kars_router.cli.egress_declared import Operator
    from kars_router.plugins import Plugins

    if all_namespaces and (namespace or sandboxes):
        raise click.UsageError("--all-namespaces goes with neither --namespace nor names")
    configure_logging(level="error", style="console")
    connection = connection_of(kubeconfig, cluster, namespace)
    question = Question(
        names=sandboxes,
        namespace=None if all_namespaces else connection.namespace,
        operator=Operator.told(told),
        plugins=Plugins.load(),
    )
    verdicts = ask(connection, lambda kube: verify(kube, question))
    emit(
        [_plain(each) for each in verdicts],
        output,
        lambda: table(
            ("SANDBOX", "PODS", "VERDICT", "POLICY", "WHAT"),
            [row for each in verdicts for row in _rows(each)],
        ),
    )
    if any(is_loose(each) or each.refused for each in verdicts):
        context.exit(FOUND)
    unread = any(not each.namespace for each in verdicts)
    if unread or (any(each.unclear for each in verdicts) and not only_networkpolicies):
        context.exit(UNDETERMINED)


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "sandbox": verdict.sandbox,
        "namespace": verdict.namespace or None,
        "policy": verdict.policy or None,
        "pods": verdict.pods,
        "verdict": _word(verdict),
        "beyond": [
            {"kind": each.kind, "policy": each.policy, "rule": each.rule, "what": each.what}
            for each in verdict.beyond
        ],
        "lacking": list(verdict.lacking),
        "refused": list(verdict.refused),
        "unclear": list(verdict.unclear),
    }


def _word(verdict: Verdict) -> str:
    if verdict.beyond:
        return "open"
    if verdict.lacking or verdict.refused:
        return "lacking"
    return "unclear" if verdict.unclear else "tight"


def _rows(verdict: Verdict) -> Iterator[tuple[object, ...]]:
    lines = [
        *(("open", each.policy, f"{each.kind}: {each.what}") for each in verdict.beyond),
        *(("lacking", verdict.policy, f"egress: {each}") for each in verdict.lacking),
        *(("lacking", "", each) for each in verdict.refused),
        *(("unclear", "", each) for each in verdict.unclear),
    ]
    for word, policy, what in lines or [("tight", verdict.policy, "")]:
        yield verdict.sandbox, verdict.pods, word, policy, what
