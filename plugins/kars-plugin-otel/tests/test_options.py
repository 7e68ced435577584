from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import pytest
from kars_plugin_otel import OtelPlugin, plugin
from kars_plugin_otel.options import Options, read

from kars_router.errors import PluginError
from kars_router.hookspecs import GovernanceSettings
from kars_router.testing import plugin_host


def test_all_is_sent_unless_told_otherwise() -> None:
    assert read({}, {}) == Options()
    assert Options().signals == {"logs", "traces", "metrics"}


@pytest.mark.parametrize(
    ("options", "environment", "signals"),
    [
        ({"signals": ["logs"]}, {}, {"logs"}),
        ({"signals": []}, {}, set()),
        ({}, {"OTEL_SDK_DISABLED": "True"}, set()),
        ({}, {"OTEL_SDK_DISABLED": "no"}, {"logs", "traces", "metrics"}),
        ({}, {"OTEL_TRACES_EXPORTER": "none"}, {"logs", "metrics"}),
        ({"signals": ["logs"]}, {"OTEL_LOGS_EXPORTER": "none"}, set()),
        ({"signals": ["logs"]}, {"OTEL_LOGS_EXPORTER": "otlp"}, {"logs"}),
        # What concerns a signal that is not sent is nobody's business.
        ({"signals": ["logs"]}, {"OTEL_TRACES_EXPORTER": "zipkin"}, {"logs"}),
        (
            {"signals": ["logs"]},
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
            },
            {"logs"},
        ),
    ],
)
def test_what_is_sent(
    options: dict[str, Any], environment: Mapping[str, str], signals: set[str]
) -> None:
    assert read(options, environment).signals == signals


@pytest.mark.parametrize(
    ("options", "environment", "named"),
    [
        ({"signal": ["logs"]}, {}, "signal"),
        ({"signals": "logs"}, {}, "signals"),
        ({"signals": ["spans"]}, {}, "spans"),
        ({"signals": [["logs"]]}, {}, "signals"),
        ({"endpoint": 4318}, {}, "endpoint"),
        ({"endpoint": "collector:4318"}, {}, "endpoint"),
        ({"endpoint": "http://["}, {}, "endpoint"),
        ({"content": "yes"}, {}, "content"),
        ({"continueAgents": None}, {}, "continueAgents"),
        ({}, {"OTEL_METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER"),
        ({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        (
            {},
            {"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
        ),
    ],
)
def test_a_mistake_is_named(
    options: dict[str, Any], environment: Mapping[str, str], named: str
) -> None:
    with pytest.raises(PluginError, match=named):
        read(options, environment)


def test_nothing_is_made_of_what_is_not_sent() -> None:
    made = OtelPlugin()
    host = plugin_host(made, name="otel", options={"signals": []})
    assert host.governors(GovernanceSettings()) == ()
    assert host.transformers(GovernanceSettings()) == ()
    assert host.audit_sinks() == []
    assert made.calls.running.export is None


def test_a_variable_that_the_sdk_refuses_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    with pytest.raises(PluginError, match="otel"):
        plugin_host(OtelPlugin(), name="otel").governors(GovernanceSettings())


def test_the_entry_point_is_the_plugin() -> None:
    [point] = [p for p in importlib.metadata.entry_points(group="kars_router") if p.name == "otel"]
    assert point.load() is plugin
