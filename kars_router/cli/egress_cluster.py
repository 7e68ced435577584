"""What a cluster grants to sandboxes, read through its API.

Owns what is read, and the judgement on one sandbox. Must not know how it is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from kars_router.cli.cluster import insist_on
from kars_router.cli.egress_declared import Declared, Operator
from kars_router.cli.egress_reading import Key, Manifest, Reading
from kars_router.config.resources import KarsSandboxResource, structure_resource
from kars_router.egress import Excess, excess, lacking
from kars_router.egress.sandbox import SANDBOX, SANDBOX_NAMESPACE, pod_labels_of
from kars_router.errors import ConfigError, UndeterminedError, UserError
from kars_router.kube import ApiError, Kube, NotFoundError, Resource
from kars_router.kube import resources as kinds
from kars_router.plugins import Plugins

# Policies that add to or overrule NetworkPolicies, and that are not evaluated here.
OTHER_POLICIES: Final = (
    Resource("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies",
             "ClusterNetworkPolicy", namespaced=False),
    Resource("policy.networking.k8s.io", "v1alpha1", "adminnetworkpolicies",
             "AdminNetworkPolicy", namespaced=False),
    Resource("policy.networking.k8s.io", "v1alpha1", "baselineadminnetworkpolicies",
             "BaselineAdminNetworkPolicy", namespaced=False),
    kinds.CILIUM_NETWORK_POLICIES,
    Resource("cilium.io", "v2", "ciliumclusterwidenetworkpolicies",
             "CiliumClusterwideNetworkPolicy", namespaced=False),
    Resource("crd.projectcalico.org", "v1", "networkpolicies", "NetworkPolicy"),
    Resource("crd.projectcalico.org", "v1", "globalnetworkpolicies",
             "GlobalNetworkPolicy", namespaced=False),
)  # fmt: skip


@frozen(kw_only=True)
class Verdict:
    """What a cluster grants to one sandbox.

    Attributes:
        sandbox: its namespace and name, with a slash.
        namespace: of its pods.
        policy: the NetworkPolicy that is declared for it.
        pods: how many there are now.
        beyond: what is open and not declared.
        lacking: what is declared and not open, in a few words each.
        refused: references of the sandbox that open nothing.
        unclear: why more than this may be open or closed.
    """

    sandbox: str
    namespace: str = ""
    policy: str = ""
    pods: int = 0
    beyond: tuple[Excess, ...] = ()
    lacking: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()


@frozen(kw_only=True)
class Question:
    """Which sandboxes are looked at.

    Attributes:
        names: these; all if there are none.
        namespace: where; None for everywhere.
        operator: what the operator was told.
        plugins: have the last word on rules.
    """

    names: tuple[str, ...]
    namespace: str | None
    operator: Operator
    plugins: Plugins


async def verify(kube: Kube, question: Question) -> list[Verdict]:
    """Judges sandboxes, one after the other.

    Args:
        kube: the cluster.
        question: which ones.

    Raises:
        KubeError: the cluster does not answer, or does not let us look.
        UserError: there is no such sandbox.
    """
    manifests = await _sandboxes(kube, question)
    others = [each for each in OTHER_POLICIES if await kube.has(each)]
    reading = Reading(
        kube=kube, operator=question.operator, plugins=question.plugins, others=others
    )
    return [await _judge(reading, manifest) for manifest in manifests]


async def _sandboxes(kube: Kube, question: Question) -> Sequence[Manifest]:
    await insist_on(kube, kinds.KARS_SANDBOXES)
    listing = await kube.list(kinds.KARS_SANDBOXES, question.namespace)
    found = {_key(each): each for each in listing.items}
    if question.names:
        assert question.namespace is not None
        wanted = [(question.namespace, name) for name in question.names]
        missing = ["/".join(key) for key in wanted if key not in found]
        if missing:
            raise UserError(f"there is no KarsSandbox {', '.join(missing)}; -n names the namespace")
        return [found[key] for key in wanted]
    if not found:
        where = question.namespace or "any namespace"
        raise UndeterminedError(f"there is no KarsSandbox in {where}; -n names the namespace")
    return [found[key] for key in sorted(found)]


async def _judge(reading: Reading, manifest: Manifest) -> Verdict:
    """What is granted to a sandbox."""
    where = "/".join(_key(manifest))
    try:
        sandbox = structure_resource(manifest)
    except ConfigError as error:
        return Verdict(sandbox=where, unclear=(f"it cannot be read: {error.problems[0]}",))
    assert isinstance(sandbox, KarsSandboxResource)
    status = manifest.get("status") or {}
    namespace = str(status.get("namespace") or reading.operator.namespace_of(sandbox))
    declared = await reading.declared(sandbox, namespace)
    policy = declared.egress.policy()
    policies = await reading.all(kinds.NETWORK_POLICIES, namespace)
    pods = [
        each
        for each in await reading.all(kinds.PODS, namespace)
        if declared.egress.pod_labels.items() <= _labels(each).items()
    ]
    # Policies select by the labels that pods have, which may be more than the operator gave.
    alike = {tuple(sorted(_labels(pod).items())) for pod in pods}
    labels = [dict(each) for each in sorted(alike)] or [
        pod_labels_of(sandbox.meta.name, sandbox.meta.namespace)
    ]
    beyond = {one: None for each in labels for one in excess(each, policy, policies)}
    less = {one: None for each in labels for one in lacking(each, policy, policies)}
    for each in declared.egress.objects:
        if what := await _difference(reading.kube, each):
            less[what] = None
    return Verdict(
        sandbox=where,
        namespace=namespace,
        policy=declared.egress.name,
        pods=len(pods),
        beyond=tuple(beyond),
        lacking=tuple(less),
        refused=declared.warnings,
        unclear=await _unclear(reading, declared, namespace),
    )


async def _difference(kube: Kube, declared: Manifest) -> str:
    """What is wrong with an object that a plugin has declared; "" if it is as declared."""
    metadata = declared["metadata"]
    what = f"{declared['kind']} {metadata['name']}"
    resource = await kube.resource_of(declared)
    try:
        live = await kube.get(resource, metadata["name"], metadata.get("namespace"))
    except NotFoundError:
        return f"{what} is not there"
    return "" if live.get("spec") == declared.get("spec") else f"{what} is not as declared"


async def _unclear(reading: Reading, declared: Declared, namespace: str) -> tuple[str, ...]:
    """Policies that are not evaluated; those of ours are compared with what is declared."""
    ours = {(each["kind"], each["metadata"]["name"]) for each in declared.egress.objects}
    found: list[str] = []
    for resource in reading.others:
        kind = f"{resource.kind} ({resource.group})"
        try:
            listed = await reading.all(resource, namespace if resource.namespaced else None)
        except ApiError as error:
            found.append(f"{kind} objects cannot be listed: {error.message}")
            continue
        found += [
            f"{kind} {each['metadata']['name']} is not evaluated"
            for each in listed
            if (resource.kind, each["metadata"]["name"]) not in ours
            and not _of_another(each, declared.egress.pod_labels)
        ]
    return tuple(found)


def _of_another(policy: Manifest, pod_labels: Mapping[str, str]) -> bool:
    """Whether a Cilium policy selects the pods of one sandbox, which is not this one."""
    selector = (policy.get("spec") or {}).get("endpointSelector") or {}
    wanted = selector.get("matchLabels") or {}
    return "specs" not in policy and any(
        wanted.get(key, pod_labels[key]) != pod_labels[key] for key in (SANDBOX, SANDBOX_NAMESPACE)
    )


def _key(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return metadata.get("namespace") or "default", metadata["name"]


def _labels(manifest: Manifest) -> dict[str, str]:
    return dict(manifest["metadata"].get("labels") or {})


def is_loose(verdict: Verdict) -> bool:
    """Whether more is open than declared, or less."""
    return bool(verdict.beyond or verdict.lacking)
