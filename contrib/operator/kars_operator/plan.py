"""From a sandbox and what it refers to, to every object that has to be there.

Owns the composition: which objects there are, in which order they come into being, and the digest
that its router has to echo. Pure but for the plugins, which are asked for their egress rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from kars_operator import names, pod, router_config
from kars_operator.refs import Chosen
from kars_operator.settings import Placement, Settings
from kars_router.config.digests import Enforced, digest_of_all, digest_of_plain, enforced_by
from kars_router.config.resources import KarsSandboxResource, McpServerResource
from kars_router.config.schema import LogLevel
from kars_router.egress import (
    Explanation,
    Place,
    SandboxEgress,
    Scope,
    merge,
    needed_by,
)
from kars_router.egress.sandbox import asked_by_operator
from kars_router.model import ServerInfo
from kars_router.plugins import Plugins

Manifest = dict[str, Any]


@frozen(kw_only=True)
class Derived:
    """What egress one server needs, and why.

    Attributes:
        server: it.
        explanations: one for each of its URLs.
    """

    server: McpServerResource
    explanations: tuple[Explanation, ...]

    @property
    def invalid(self) -> str:
        """Why nothing can be derived; "" if it can."""
        return next((e.reason for e in self.explanations if e.scope is Scope.INVALID), "")

    @property
    def word(self) -> str:
        """How it was derived, in one word for the status."""
        first = self.explanations[0]
        if first.scope is Scope.IN_CLUSTER:
            return "ServicePods" if first.exact else "Namespace"
        if first.scope is Scope.ADDRESS:
            return "Address"
        return "Https" if first.rule is None else "Port"


@frozen(kw_only=True)
class Plan:
    """What has to be there for a sandbox.

    Attributes:
        namespace: where.
        objects: in the order in which they are applied: what bounds the pod before the pod.
        policy: the NetworkPolicy among them.
        enforced: what the router has to enforce.
        digest: of that, as the router echoes it.
        derived: the egress of each server that the router gets.
        image: the agent's; "" if nobody names one, and then there is no Deployment.
    """

    namespace: str
    objects: tuple[Manifest, ...]
    policy: Manifest
    enforced: tuple[Enforced, ...]
    digest: str
    derived: tuple[Derived, ...]
    image: str


@frozen(kw_only=True)
class Means:
    """What a plan is made with.

    Attributes:
        settings: the operator's.
        place: where the pods of the sandbox are, and how to read a Service.
        plugins: are asked for egress rules and further objects.
    """

    settings: Settings
    place: Place
    plugins: Plugins


def compose(sandbox: KarsSandboxResource, chosen: Chosen, means: Means) -> Plan:
    """Composes everything for one sandbox.

    Args:
        sandbox: it.
        chosen: what it gets.
        means: what it is made with.

    Raises:
        ConfigError: no router would take the configuration; nothing may be rolled out.
    """
    settings, place = means.settings, means.place
    derived = tuple(
        Derived(server=each, explanations=needed_by(_info(each), place)) for each in chosen.servers
    )
    usable = [each.server for each in derived if not each.invalid]
    document = router_config.document(
        settings,
        {each.meta.name: each.spec.entry() for each in usable},
        chosen.policies,
        log_level=sandbox.spec.router.log_level or LogLevel.INFO,
    )
    enforced = enforced_by(router_config.read(document, f"KarsSandbox {sandbox.meta.name}"))
    digest = digest_of_all(enforced)
    needs = pod.Needs(
        servers=[each.meta.name for each in usable],
        variables=sorted({name for each in usable for name in _variables(each)}),
        restart_on=digest_of_plain(router_config.needs_restart(document)).removeprefix("sha256:"),
    )
    egress = _egress(sandbox, derived, means)
    policy = egress.policy()
    objects = [
        *_namespace(sandbox, settings, place.namespace),
        _service_account(sandbox, place.namespace),
        _config_map(sandbox, document, digest, place.namespace),
        policy,
        *(dict(each) for each in egress.objects),
    ]
    image = _image(sandbox, settings)
    if image:
        objects.append(pod.deployment(sandbox, needs, settings, place.namespace))
    return Plan(
        namespace=place.namespace,
        objects=tuple(_owned(each, sandbox, settings) for each in objects),
        policy=policy,
        enforced=enforced,
        digest=digest,
        derived=derived,
        image=image,
    )


def info(server: McpServerResource) -> ServerInfo:
    """What plugins may know of a server."""
    return _info(server)


def _info(server: McpServerResource) -> ServerInfo:
    spec = server.spec.server
    return ServerInfo(
        name=server.meta.name,
        allowed_tools=spec.allowed_tools,
        bearer_from_env=spec.bearer_from_env or "",
        url=spec.url or "",
        oauth=spec.oauth,
        allowed_networks=spec.allowed_networks,
    )


def _image(sandbox: KarsSandboxResource, settings: Settings) -> str:
    named = sandbox.spec.container.image
    return named or settings.agent_images.get(sandbox.spec.runtime.kind or "", "")


def _variables(server: McpServerResource) -> Sequence[str]:
    spec = server.spec.server
    named = [spec.bearer_from_env]
    if spec.oauth is not None:
        oauth = spec.oauth
        named += [
            oauth.client_id_from_env,
            oauth.client_secret_from_env,
            oauth.subject_token_from_env,
        ]
    return [each for each in named if each]


def _owned(manifest: Manifest, sandbox: KarsSandboxResource, settings: Settings) -> Manifest:
    """With its owner, so that it goes with the sandbox; an owner has to be in the same place."""
    if settings.placement is Placement.OWN or not sandbox.meta.uid:
        return manifest
    owner = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "KarsSandbox",
        "name": sandbox.meta.name,
        "uid": sandbox.meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def _metadata(sandbox: KarsSandboxResource, name: str, namespace: str) -> dict[str, Any]:
    labels = names.labels_of(sandbox.meta.name, sandbox.meta.namespace)
    return {"name": name, "namespace": namespace, "labels": labels}


def _namespace(
    sandbox: KarsSandboxResource, settings: Settings, namespace: str
) -> tuple[Manifest, ...]:
    if settings.placement is Placement.SAME:
        return ()
    labels = names.labels_of(sandbox.meta.name, sandbox.meta.namespace)
    # The guard needs NET_ADMIN, which the other levels do not let a pod ask for.
    labels["pod-security.kubernetes.io/enforce"] = "privileged"
    metadata = {"name": namespace, "labels": labels}
    return ({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},)


def _service_account(sandbox: KarsSandboxResource, namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(sandbox, sandbox.meta.name, namespace),
        "automountServiceAccountToken": False,
    }


def _config_map(
    sandbox: KarsSandboxResource, document: dict[str, Any], digest: str, namespace: str
) -> Manifest:
    metadata = _metadata(sandbox, names.config_map(sandbox.meta.name), namespace)
    metadata["annotations"] = {names.DIGEST: digest}
    text = router_config.write(document)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {names.CONFIG_FILE: text},
    }


def _egress(
    sandbox: KarsSandboxResource, derived: Sequence[Derived], means: Means
) -> SandboxEgress:
    settings, place = means.settings, means.place
    usable = [each for each in derived if not each.invalid]
    infos = tuple(_info(each.server) for each in usable)
    rules = merge((each.name, means.plugins.egress_rules(each, place)) for each in infos)
    wanted = SandboxEgress(
        name=sandbox.meta.name,
        namespace=place.namespace,
        pod_labels=names.pod_labels_of(sandbox.meta.name, sandbox.meta.namespace),
        servers=infos,
        rules=rules,
        https=any(e.https for each in usable for e in each.explanations),
        dns=settings.dns,
        ingress=(asked_by_operator(settings.operator_namespace, settings.admin_port),),
        labels=names.labels_of(sandbox.meta.name, sandbox.meta.namespace),
    )
    return means.plugins.egress_objects(wanted, place)
