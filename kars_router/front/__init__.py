"""The agent's side and the operator's side: an MCP server and an admin address, as ASGI."""
