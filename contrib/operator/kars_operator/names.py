"""Names, labels and annotations of what the operator makes; who reads them finds them all here."""

from __future__ import annotations

from typing import Final

from kars_router.egress.sandbox import (
    COMPONENT,
    MANAGED_BY,
    SANDBOX,
    SANDBOX_NAMESPACE,
    labels_of,
    pod_labels_of,
)
from kars_router.egress.sandbox import OPERATOR as MANAGER

__all__ = [
    "AGENT_UID",
    "COMPONENT",
    "CONFIG_DIRECTORY",
    "CONFIG_FILE",
    "DIGEST",
    "FINALIZER",
    "MANAGED_BY",
    "MANAGER",
    "RESTARTS",
    "ROUTER_UID",
    "SANDBOX",
    "SANDBOX_NAMESPACE",
    "STATE_DIRECTORY",
    "agent_credentials",
    "config_map",
    "credentials",
    "labels_of",
    "pod_labels_of",
]

# Annotations.
RESTARTS: Final = "kars.azure.com/restart-on"
DIGEST: Final = "kars.azure.com/policy-digest"

FINALIZER: Final = "kars.azure.com/sandbox-namespace"

AGENT_UID: Final = 1000
ROUTER_UID: Final = 1001
CONFIG_DIRECTORY: Final = "/etc/kars"
CONFIG_FILE: Final = "kars.yaml"
STATE_DIRECTORY: Final = "/var/lib/kars"


def config_map(sandbox: str) -> str:
    """The name of the ConfigMap with the router's configuration."""
    return f"{sandbox}-router"


def credentials(sandbox: str) -> str:
    """The name of the Secret with the tokens that only the router may see."""
    return f"{sandbox}-router-credentials"


def agent_credentials(sandbox: str) -> str:
    """The name of the Secret that kars gives to the agent."""
    return f"{sandbox}-credentials"
