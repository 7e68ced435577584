"""A sidecar router that keeps stateful MCP servers alive for the agent in the same pod."""
