"""Configuration: one schema for `kars.yaml` and for the custom resources.

Reading order: `schema` (what there is), `units`, `addresses`, `headers` and `globs` (what a
value may look like), `rules` (which keys go together), `converter` (plain data to values) and
`plain` (back), `document` (text to plain data), `load` (files, flags and environment to a
`Config`). Of the custom resources: `mcpserver`, `sandbox` and `toolpolicyspec` (what there is),
`resource_rules`, `resources` (manifests to values), `openapi` (classes to schemas).
Knows nothing of sessions, transports or listeners.
"""
