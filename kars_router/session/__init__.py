"""Upstream sessions: opening them, keeping them alive, noticing and mending their loss."""
