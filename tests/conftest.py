"""What every test gets: nothing but settings that make a failure repeatable."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same examples on every run and no deadline: a busy machine must not decide a test's outcome.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# To look for new counterexamples: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("repeatable")
