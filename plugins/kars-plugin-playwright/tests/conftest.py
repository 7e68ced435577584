"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every run and no deadline: a busy machine must not decide a test's outcome.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
