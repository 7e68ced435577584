"""`McpServer` resources as people read them.

Owns the columns, and what the conditions of a resource come to in one word. Reads objects as an
API server has them, valid or not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kars_router.cli.output import clean, table

Manifest = Mapping[str, Any]

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60))


def listed(servers: Sequence[Manifest], now: dt.datetime, *, namespace: str | None) -> str:
    """A line for each server.

    Args:
        servers: the resources.
        now: the time of day.
        namespace: that they are all of, or None for those of every namespace.
    """
    if not servers:
        where = f" in {namespace}; -A looks everywhere" if namespace else ""
        return f"no McpServers{where}"
    headings = ["NAME", "URL", "PROD", "AGE", "STATUS", "REASON"]
    rows = []
    for server in servers:
        status, reason, _ = state(server)
        spec = mapping(server.get("spec"))
        row: list[object] = [server["metadata"].get("namespace")] if namespace is None else []
        rows.append(
            [
                *row,
                server["metadata"].get("name"),
                spec.get("url") or "-",
                "yes" if spec.get("productionMode") is True else "no",
                age(server["metadata"].get("creationTimestamp"), now),
                status,
                reason,
            ]
        )
    return table([*(["NAMESPACE"] if namespace is None else []), *headings], rows)


def shown(server: Manifest, now: dt.datetime) -> str:
    """One server: what it is, and what is said of it."""
    metadata, spec = server["metadata"], mapping(server.get("spec"))
    status, reason, message = state(server)
    oauth = mapping(spec.get("oauth"))
    allowed = mapping(spec.get("allowedSandboxes"))
    facts = [
        ("name", metadata.get("name")),
        ("namespace", metadata.get("namespace")),
        ("display name", spec.get("displayName")),
        ("url", spec.get("url")),
        ("production", "yes" if spec.get("productionMode") is True else "no"),
        ("tokens of", oauth.get("issuer")),
        ("bearer from", spec.get("bearerFromEnv")),
        ("tools", _words(spec.get("allowedTools")) or "none"),
        ("scopes", _words(spec.get("scopes"))),
        ("sandboxes", _pairs(allowed.get("matchLabels")) or "any in its namespace"),
        ("also of", _words(allowed.get("namespaces"))),
        ("age", age(metadata.get("creationTimestamp"), now)),
        ("status", f"{status} ({reason})" if reason else status),
        ("says", message),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name.ljust(width)}  {clean(str(fact))}" for name, fact in facts if fact]
    conditions = mapping_list(mapping(server.get("status")).get("conditions"))
    if conditions:
        rows = [
            (
                each.get("type"),
                each.get("status"),
                each.get("reason"),
                age(each.get("lastTransitionTime"), now),
                each.get("message"),
            )
            for each in conditions
        ]
        lines += ["", table(("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"), rows)]
    return "\n".join(lines)


def state(server: Manifest) -> tuple[str, str, str]:
    """What is said of a server: status, reason and message.

    `Ready` and `NotReady` are about the present spec; with a status of an older one, or none, it is
    `Pending`; and `Deleting` as soon as somebody has deleted it.
    """
    metadata, status = server["metadata"], mapping(server.get("status"))
    if metadata.get("deletionTimestamp"):
        return "Deleting", _words(metadata.get("finalizers")), ""
    ready: Mapping[str, Any] = next(
        (each for each in mapping_list(status.get("conditions")) if each.get("type") == "Ready"),
        {},
    )
    reason, message = str(ready.get("reason") or ""), str(ready.get("message") or "")
    if not ready:
        return str(status.get("phase") or "Pending"), "", ""
    seen = ready.get("observedGeneration", status.get("observedGeneration"))
    generation = metadata.get("generation")
    if isinstance(seen, int) and isinstance(generation, int) and seen < generation:
        return "Pending", "Outdated", "the last change has not been looked at yet"
    word = {"True": "Ready", "False": "NotReady"}.get(str(ready.get("status")), "Pending")
    return word, reason, message


def age(stamp: object, now: dt.datetime) -> str:
    """The time since a timestamp in its largest unit, as kubectl has it; `?` if it is none."""
    try:
        since = now - dt.datetime.fromisoformat(str(stamp))
    except (ValueError, TypeError):
        return "?"
    seconds = max(0, int(since.total_seconds()))
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def mapping(value: object) -> Mapping[str, Any]:
    """A value, if it is a mapping; else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mapping_list(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _words(value: object) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, list) else ""


def _pairs(value: object) -> str:
    return ", ".join(f"{key}={text}" for key, text in mapping(value).items())
