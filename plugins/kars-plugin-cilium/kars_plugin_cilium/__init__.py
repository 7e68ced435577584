"""A kars-router plugin that opens the very hosts of servers, where the cluster has Cilium."""

from kars_plugin_cilium.hooks import CiliumPlugin as CiliumPlugin

plugin = CiliumPlugin()
