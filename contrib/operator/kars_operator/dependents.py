"""Status of McpServers and ToolPolicies: whether the routers of those who use them enforce them.

Owns what their status says. A server or policy is ready only when every router that should enforce
it has echoed its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field

from kars_operator import conditions, names, router_config
from kars_operator.conditions import Condition
from kars_operator.enforcement import Routers
from kars_operator.knowledge import Knowledge
from kars_operator.reconcile import utc_now
from kars_operator.refs import Unusable
from kars_operator.store import Key, Object, key_of
from kars_operator.written import Written
from kars_router.config.digests import digest_of
from kars_router.config.references import admits
from kars_router.config.resources import (
    KarsSandboxResource,
    McpServerResource,
    ToolPolicyResource,
)
from kars_router.kube import Kube
from kars_router.kube import resources as kinds


@define(eq=False)
class Dependents:
    """Writes the status of what sandboxes refer to.

    Args:
        kube: the API server.
        known: what is known of the cluster.
        routers: what the routers said.
        now: the time for statuses.
    """

    kube: Kube
    known: Knowledge
    routers: Routers
    now: Callable[[], str] = utc_now
    _servers: Written = field(factory=Written, init=False)
    _policies: Written = field(factory=Written, init=False)

    async def server(self, key: Key) -> None:
        """Writes the status of an McpServer.

        Raises:
            KubeError: the API server did not do it.
        """
        manifest = self.known.store(kinds.MCP_SERVERS).get(*key)
        found = self.known.server(*key)
        if manifest is None or found is None:
            self._servers.forget(key)
            return
        if isinstance(found, Unusable):
            await self._write(self._servers, manifest, _invalid(found), {})
        elif found.spec.unusable:
            said = Condition("Ready", False, "NotSupported", f"It {found.spec.unusable}.")
            await self._write(self._servers, manifest, said, {})
        else:
            digest = digest_of(found.spec.server)
            users = self.known.referring_to_server(key)
            said = self._ready("McpServer", key, digest, users, server=found)
            await self._write(self._servers, manifest, said, {"digest": digest})

    async def policy(self, key: Key) -> None:
        """Writes the status of a ToolPolicy, likewise."""
        manifest = self.known.store(kinds.TOOL_POLICIES).get(*key)
        found = self.known.policy(*key)
        if manifest is None or found is None:
            self._policies.forget(key)
            return
        if isinstance(found, Unusable):
            await self._write(self._policies, manifest, _invalid(found), {})
            return
        assert isinstance(found, ToolPolicyResource)
        digest = digest_of(router_config.for_router(found.spec, key.name))
        said = self._ready("ToolPolicy", key, digest, self.known.under_policy(key))
        await self._write(self._policies, manifest, said, {"digest": digest})

    def _ready(
        self,
        kind: str,
        key: Key,
        digest: str,
        users: Iterable[Key],
        *,
        server: McpServerResource | None = None,
    ) -> Condition:
        sandboxes = sorted(each for each in users if self._counts(each, server))
        if not sandboxes:
            refers = "names it or has its labels" if kind == "ToolPolicy" else "refers to it"
            message = (
                f"No sandbox that may use it and is not suspended {refers}, so that no router "
                "enforces it."
            )
            return Condition("Ready", False, "NoSandboxesReferencing", message)
        wanted = (kind, key.name, digest)
        waiting = [each for each in sandboxes if not self._enforced(each, wanted)]
        if not waiting:
            message = f"The routers of all {len(sandboxes)} sandboxes have echoed its digest."
            return Condition("Ready", True, "RouterEnforcing", message)
        message = (
            f"{len(waiting)} of {len(sandboxes)} sandboxes have a router that does not enforce it "
            f"yet, {waiting[0]} among them."
        )
        return Condition("Ready", False, "AwaitingRouterEnforcement", message)

    def _counts(self, sandbox: Key, server: McpServerResource | None) -> bool:
        """Whether a router of a sandbox should enforce it: not where there is none, or no right."""
        found = self.known.sandbox(*sandbox)
        if not isinstance(found, KarsSandboxResource):
            return True  # nobody knows what its router does
        return not found.spec.suspended and (server is None or admits(server, found))

    def _enforced(self, sandbox: Key, wanted: tuple[str, str, str]) -> bool:
        heard = self.routers.heard(sandbox)
        return bool(heard) and all(wanted in each.entries for each in heard)

    async def _write(
        self, written: Written, manifest: Object, said: Condition, more: Mapping[str, Any]
    ) -> None:
        metadata, key = manifest["metadata"], key_of(manifest)
        before = written.last(key, manifest)
        generation = metadata["generation"]
        waiting = {"NoSandboxesReferencing", "AwaitingRouterEnforcement"}
        status = {
            "phase": "Ready"
            if said.status
            else "Pending"
            if said.reason in waiting
            else "Degraded",
            "observedGeneration": generation,
            "conditions": conditions.plain(
                [said], before.get("conditions") or [], generation=generation, now=self.now()
            ),
            **more,
        }
        if written.is_there(key, manifest, status):
            return
        written.note(key, manifest, before, certain=False)
        kept = ("name", "namespace")
        await self.kube.apply(
            {
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "metadata": {each: metadata[each] for each in kept},
                "status": status,
            },
            manager=names.MANAGER,
            force=True,
            subresource="status",
        )
        written.note(key, manifest, status, certain=True)


def _invalid(found: Unusable) -> Condition:
    return Condition("Ready", False, "SpecInvalid", "; ".join(found.problems))
