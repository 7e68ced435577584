"""Reading what a Service manifest says of the pods behind it.

Must not know where manifests come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kars_router.egress.values import Service


def service_from(manifest: Mapping[str, Any]) -> Service:
    """What has to be known of a Service.

    Args:
        manifest: as the API server gives it, or as it stands in a file; what it does not say has
            the API server's default.
    """
    spec = manifest.get("spec") or {}
    ports = {
        int(each["port"]): each.get("targetPort") or each["port"]
        for each in spec.get("ports") or ()
        if each.get("protocol", "TCP") == "TCP"
    }
    alias = spec.get("type") == "ExternalName"
    return Service(
        selector=dict(spec.get("selector") or {}),
        ports=ports,
        headless=spec.get("clusterIP") == "None",
        external_name=str(spec.get("externalName") or "") if alias else "",
    )
