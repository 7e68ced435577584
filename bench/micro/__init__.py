"""Small measurements that the documentation cites; each is a script, most without processes."""
