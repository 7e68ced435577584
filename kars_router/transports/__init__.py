"""Ways to carry a session's messages to its server; none knows what a session is."""
