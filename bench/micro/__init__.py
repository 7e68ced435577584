"""Small measurements without processes or sockets, which decisions cite; each is a script."""
