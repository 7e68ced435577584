"""A kars-router plugin that notices when Playwright MCP has silently replaced its browser."""

from kars_plugin_playwright.hooks import PlaywrightPlugin as PlaywrightPlugin

plugin = PlaywrightPlugin()
