"""Measurements: `python -m bench`, or `tox -e bench`. See docs/performance.md."""
