"""The wire formats of MCP as pure functions: JSON-RPC, event streams, revisions, names."""
