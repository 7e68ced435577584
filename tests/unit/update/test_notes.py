"""What is new between two releases that are known already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from index_kit import NO_PROXY, Index, serve_index, serve_raw

from kars_router.update import findings
from kars_router.update.ask import ask_notes
from kars_router.update.findings import Findings
from kars_router.update.installation import Installation, Manner
from kars_router.update.look import notes_between


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_PROXY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def index() -> Iterator[Index]:
    with serve_index() as running:
        versions = ("0.1.0", "0.2.0", "0.3.0", "0.10.0")
        running.releases = [
            {"tag_name": f"v{each}", "name": None, "body": f"- Something of {each}."}
            for each in reversed(versions)
        ]
        yield running


@pytest.fixture
def installation(tmp_path: Path, index: Index) -> Installation:
    urls = (f"Repository, {index.repository}",)
    return Installation(Manner.PIP, tmp_path, sys.executable, urls=urls)


def between(installation: Installation | None, since: str, until: str) -> Findings:
    found = notes_between(installation, since, until, seconds=10)
    # Nothing is lost on the way between two processes.
    assert findings.load(findings.dump(found)) == found
    return found


def test_the_releases_after_one_and_up_to_another(installation: Installation) -> None:
    found = between(installation, "0.1.0", "0.3.0")
    assert found.newer == ("0.2.0", "0.3.0")
    assert found.summaries == {"0.2.0": "Something of 0.2.0.", "0.3.0": "Something of 0.3.0."}
    assert found.notes_problem == ""
    assert between(installation, "0.3.0", "0.10.0").newer == ("0.10.0",)


def test_a_release_without_a_line(installation: Installation) -> None:
    found = between(installation, "0.2.0", "0.3.1")
    assert (found.newer, list(found.summaries)) == (("0.3.0", "0.3.1"), ["0.3.0"])
    found = between(installation, "0.10.0", "0.11.0")
    assert (found.newer, found.summaries) == (("0.11.0",), {})
    assert found.notes_problem == "nothing is written about these releases"


def test_nowhere_to_look(installation: Installation, index: Index) -> None:
    assert between(None, "0.1.0", "0.2.0").notes_problem
    nowhere = evolve(installation, urls=())
    said = between(nowhere, "0.1.0", "0.2.0").notes_problem
    assert said == "the package does not name a repository with its notes"
    with serve_raw(lambda raw: raw.request()) as broken:
        elsewhere = evolve(installation, urls=(f"Repository, {broken}/somebody/kars-router",))
        said = between(elsewhere, "0.1.0", "0.2.0").notes_problem
    assert said.startswith("the place of the release notes ")
    assert index.pages() == []


def test_it_is_asked_in_a_process_of_its_own() -> None:
    found = ask_notes("0.1.0", "0.2.0", 20)
    assert found.problem == ""
    assert found.summaries or found.notes_problem
