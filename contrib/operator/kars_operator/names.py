"""Names, labels and annotations of what the operator makes; who reads them finds them all here."""

from __future__ import annotations

from typing import Final

MANAGER: Final = "kars-operator"

# Labels.
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
SANDBOX: Final = "kars.azure.com/sandbox"
SANDBOX_NAMESPACE: Final = "kars.azure.com/sandbox-namespace"
COMPONENT: Final = "kars.azure.com/component"

# Annotations.
RESTARTS: Final = "kars.azure.com/restart-on"
DIGEST: Final = "kars.azure.com/policy-digest"

FINALIZER: Final = "kars.azure.com/sandbox-namespace"

AGENT_UID: Final = 1000
ROUTER_UID: Final = 1001
CONFIG_DIRECTORY: Final = "/etc/kars"
CONFIG_FILE: Final = "kars.yaml"
STATE_DIRECTORY: Final = "/var/lib/kars"


def labels(sandbox: str, namespace: str) -> dict[str, str]:
    """Labels of everything that is made for a sandbox.

    Args:
        sandbox: its name.
        namespace: where its KarsSandbox is.
    """
    return {MANAGED_BY: MANAGER, SANDBOX: sandbox, SANDBOX_NAMESPACE: namespace}


def pod_labels(sandbox: str, namespace: str) -> dict[str, str]:
    """Labels of a sandbox's pods; its NetworkPolicy selects by them."""
    return {**labels(sandbox, namespace), COMPONENT: "sandbox"}


def config_map(sandbox: str) -> str:
    """The name of the ConfigMap with the router's configuration."""
    return f"{sandbox}-router"


def credentials(sandbox: str) -> str:
    """The name of the Secret with the tokens that only the router may see."""
    return f"{sandbox}-router-credentials"


def agent_credentials(sandbox: str) -> str:
    """The name of the Secret that kars gives to the agent."""
    return f"{sandbox}-credentials"
