"""The router as a client of OAuth authorization servers; see docs/oauth.md.

`tokens` is the way in. Nothing in here knows sessions, agents or MCP messages.
"""
