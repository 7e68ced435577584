"""A kars-router plugin that decides on every call by the rules and limits of ToolPolicies."""

from kars_plugin_toolpolicy.plugin import ToolPolicyPlugin as ToolPolicyPlugin

plugin = ToolPolicyPlugin()
