"""The router's own behaviour where it is open to plugins, as plugins."""
