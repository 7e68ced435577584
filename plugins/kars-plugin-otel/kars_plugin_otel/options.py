"""What the plugin is told: its options, and the few standard variables that it reads itself.

The SDK reads all other `OTEL_*` variables (endpoint, headers, certificates, time-outs, batches,
sampler, resource, limits). Must not know the SDK.

Source: OpenTelemetry "Environment Variable Specification", "OTLP Exporter Configuration".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import frozen

from kars_router.errors import PluginError

SIGNALS: Final = ("logs", "traces", "metrics")
PROTOCOL: Final = "http/protobuf"
_NAMES: Final = ("content", "continueAgents", "endpoint", "signals")


@frozen(kw_only=True)
class Options:
    """The options, checked.

    Attributes:
        signals: what is sent: some of `logs`, `traces`, `metrics`; empty for nothing at all.
        endpoint: base URL of the collector; "" for what the environment says.
        content: whether spans hold arguments, whole URIs and the words of errors.
        continue_agents: whether an agent's trace context becomes the parent of the router's; it is
            linked otherwise.
    """

    signals: frozenset[str] = frozenset(SIGNALS)
    endpoint: str = ""
    content: bool = False
    continue_agents: bool = True


def read(options: Mapping[str, Any], environment: Mapping[str, str]) -> Options:
    """Checks `plugins.options.otel` and the environment.

    Args:
        options: the plugin's own options.
        environment: the process's environment variables.

    Raises:
        PluginError: an option is unknown or impossible, or a variable asks for an exporter or a
            protocol that is not here.
    """
    unknown = sorted(str(name) for name in options if name not in _NAMES)
    if unknown:
        raise PluginError(f"unknown option `{unknown[0]}`; there are {', '.join(_NAMES)}")
    signals = _signals(options.get("signals", SIGNALS))
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        signals = frozenset()
    return Options(
        signals=frozenset(name for name in signals if _wanted(name, environment)),
        endpoint=_endpoint(options.get("endpoint", "")),
        content=_flag(options, "content", default=False),
        continue_agents=_flag(options, "continueAgents", default=True),
    )


def _signals(value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise PluginError("option `signals` must be a list")
    for name in value:
        if name not in SIGNALS:
            raise PluginError(f"option `signals` may hold {', '.join(SIGNALS)}, not {name!r}")
    return frozenset(value)


def _endpoint(value: Any) -> str:
    if not isinstance(value, str):
        raise PluginError("option `endpoint` must be a URL")
    if value:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            raise PluginError("option `endpoint` must be the http(s) URL of a collector")
    return value.rstrip("/")


def _flag(options: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise PluginError(f"option `{name}` must be true or false")
    return value


def _wanted(signal: str, environment: Mapping[str, str]) -> bool:
    """Whether the environment leaves a signal on."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    exporter = environment.get(variable, "").strip() or "otlp"
    if exporter == "none":
        return False
    if exporter != "otlp":
        raise PluginError(f"{variable} is {exporter}; this plugin has otlp, and none for off")
    for variable in (
        f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ):
        protocol = environment.get(variable, "").strip()
        if protocol and protocol != PROTOCOL:
            raise PluginError(f"{variable} is {protocol}; this plugin speaks {PROTOCOL}")
        if protocol:
            break
    return True
