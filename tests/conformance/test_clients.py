"""The suite's client scenarios: a stock client against the suite's servers, through the router.

The same client without the router is the control: what fails there in the same way is the
client's own. Then the client speaks the other era, so that the router has to translate; there the
control would not get past its first request.
"""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conformance.cells import ERAS, Cell, era_of
from conformance.suite import HANDSHAKE, REVISIONS, STATELESS, Outcome, Suite

AGENTS = Path(__file__).parent / "agents"

# As `Suite.client_scenarios` says, which a test compares with it: tests are named before there is
# a suite.
SCENARIOS = {
    HANDSHAKE: [
        "initialize",
        "tools_call",
        "elicitation-sep1034-client-defaults",
        "sse-retry",
        "json-schema-2020-12-preservation",
    ],
    STATELESS: [
        "tools_call",
        "request-metadata",
        "sep-2322-client-request-state",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
    ],
}
# What the stock client does wrong by itself, with the router or without.
OWN_DEFECTS = {
    "sep-2322-client-request-state": "a result without `resultType` is an error to it",
}
PASSED: tuple[int, list[str]] = (0, [])
RUNS = [(revision, scenario) for revision in REVISIONS for scenario in SCENARIOS[revision]]


def failures(outcome: Outcome) -> tuple[int, list[str]]:
    """What two outcomes are compared by: the verdict, and what failed."""
    checks = [text.partition(":")[0] for texts in outcome.problems.values() for text in texts]
    steps = re.findall(r"^failed: .*", outcome.said, re.MULTILINE)
    return outcome.code, sorted([*checks, *outcome.hollow, *steps])


def run(
    suite: Suite, sdk: Path, scenario: str, revision: str, output: Path, era: str | None
) -> Outcome:
    """Run `scenario` with a client of `era` behind the router, or, with None, without a router."""
    # The suite's shell takes these apart, whatever is in the paths.
    command = '"$KARS_CLIENT_PYTHON" "$KARS_CLIENT"'
    # The router is ours: what the test run asks of warnings and imports holds for it too.
    own = {
        name: os.environ[name] for name in ("PYTHONPATH", "PYTHONWARNINGS") if name in os.environ
    }
    env = {
        **({} if era is None else own),
        "KARS_CLIENT_PYTHON": str(sdk if era is None else sys.executable),
        "KARS_CLIENT": str(AGENTS / ("driver.py" if era is None else "via_router.py")),
        "KARS_DRIVER_PYTHON": str(sdk),
        "KARS_DRIVER_ERA": era or era_of(revision),
    }
    return suite.run_client(command, scenario, revision, output, env)


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_client_scenario_of_the_suite_is_run(suite: Suite, revision: str) -> None:
    assert sorted(suite.client_scenarios(revision)) == sorted(SCENARIOS[revision])


@pytest.mark.parametrize(("revision", "scenario"), RUNS)
def test_a_stock_client_does_through_the_router_what_it_does_without(
    revision: str, scenario: str, suite: Suite, sdk: Path, tmp_path: Path
) -> None:
    ways: dict[str, str | None] = {"direct": None, **{era: era for era in ERAS}}
    with ThreadPoolExecutor(len(ways)) as pool:
        started = {
            way: pool.submit(run, suite, sdk, scenario, revision, tmp_path / way, era)
            for way, era in ways.items()
        }
    outcomes = {way: future.result() for way, future in started.items()}

    direct = failures(outcomes.pop("direct"))
    assert (direct != PASSED) is (scenario in OWN_DEFECTS), direct
    wrong = []
    for era, outcome in outcomes.items():
        cell = Cell("client", revision, era)
        allowed = [PASSED] if cell.crossed else [PASSED, direct]
        seen = failures(outcome)
        if (scenario in cell.reasons()) is (seen in allowed):
            wrong += [f"{cell.name}: {seen}, directly {direct}", outcome.summary(), outcome.said]
    assert wrong == [], "\n".join(wrong)
