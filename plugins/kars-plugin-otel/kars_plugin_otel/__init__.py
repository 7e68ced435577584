"""A kars-router plugin that sends traces, metrics and audit records over OTLP."""

from kars_plugin_otel.hooks import OtelPlugin as OtelPlugin

plugin = OtelPlugin()
