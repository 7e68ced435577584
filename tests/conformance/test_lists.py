"""The lists of what is expected to fail: each entry has its reason, and the page has them all."""

from __future__ import annotations

import pytest
from conformance.cells import CELLS, EXPECTED, SERVER_CELLS, Cell, era_of
from conformance.page import BEGIN, END, PAGE, tables
from conformance.suite import HANDSHAKE, Suite

# What must pass through the router, whatever becomes of the lists.
NEVER_EXPECTED_TO_FAIL = frozenset(
    {
        "server-initialize",
        "server-session-lifecycle",
        "server-sse-multiple-streams",
        "ping",
        "tools-list",
        "tools-call-simple-text",
        "tools-call-image",
        "tools-call-audio",
        "tools-call-embedded-resource",
        "tools-call-mixed-content",
        "tools-call-error",
        "json-schema-2020-12",
        "dns-rebinding-protection",
    }
)

WITHIN_HANDSHAKE_ERA = [
    cell for cell in SERVER_CELLS if cell.revision == HANDSHAKE and not cell.crossed
]


def test_every_list_belongs_to_a_combination() -> None:
    assert {path.name for path in EXPECTED.iterdir()} == {cell.file.name for cell in CELLS}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_expected_failure_has_a_reason(cell: Cell) -> None:
    lines = cell.file.read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line.strip().startswith("-")]

    assert [name for name, reason in cell.reasons().items() if not reason] == []
    assert len(cell.reasons()) == len(entries)


@pytest.mark.parametrize("cell", WITHIN_HANDSHAKE_ERA, ids=lambda cell: cell.name)
def test_nothing_that_must_pass_is_expected_to_fail(cell: Cell) -> None:
    entries = {entry.partition(":")[0] for entry in cell.reasons()}

    assert entries.isdisjoint(NEVER_EXPECTED_TO_FAIL)


def test_the_page_has_the_tables_that_the_lists_make(suite: Suite) -> None:
    page = PAGE.read_text(encoding="utf-8")

    # To write them anew: conformance/page.py.
    assert page.partition(BEGIN)[2].partition(END)[0] == tables(suite)


def test_the_eras_of_the_cells_are_those_of_their_revisions() -> None:
    assert {cell.revision: era_of(cell.revision) for cell in CELLS} == {
        "2025-11-25": "handshake",
        "2026-07-28": "stateless",
    }
