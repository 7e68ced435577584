"""Real Playwright MCP servers with a real browser, first directly and then behind the router.

A package, so that its modules are found before an installed `playwright` of the same name.
"""
