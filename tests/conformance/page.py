"""The tables of docs/conformance.md, made from `expected/` and the suite's own lists.

From the folder `tests`, in the environment of the tests, this writes them anew:

    python -m conformance.page
"""

from __future__ import annotations

from collections.abc import Iterator

from conformance.cells import CLIENT_CELLS, SERVER_CELLS, Cell
from conformance.suite import REVISIONS, TASKS, Suite, install
from peers import REPOSITORY

PAGE = REPOSITORY / "docs" / "conformance.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"


def tables(suite: Suite) -> str:
    """Everything between the two marks of the page."""
    parts = []
    for leg, title, cells in (
        ("server", "an agent", SERVER_CELLS),
        ("client", "a server", CLIENT_CELLS),
    ):
        for revision in REVISIONS:
            own = [cell for cell in cells if cell.revision == revision]
            names = scenarios(suite, leg, revision)
            parts.append(f"## The suite as {title} of {revision}\n")
            parts += [*_matrix(leg, own, names), ""]
            for cell in own:
                parts += _why(cell)
    return "\n".join(parts)


def scenarios(suite: Suite, leg: str, revision: str) -> list[str]:
    """What the page has a row for."""
    if leg == "client":
        return suite.client_scenarios(revision)
    names = suite.scored(leg, revision) + suite.unscored(leg, revision)
    return [name for name in names if not name.startswith(TASKS)]


def _matrix(leg: str, cells: list[Cell], names: list[str]) -> Iterator[str]:
    other = "server" if leg == "server" else "agent"
    columns = [f"{other}: {cell.other}" for cell in cells]
    yield f"| scenario | {' | '.join(columns)} |"
    yield "|---|" + "---|" * len(cells)
    for name in names:
        marks = ["no" if name in _scenarios(cell) else "passes" for cell in cells]
        yield f"| `{name}` | {' | '.join(marks)} |"
    passed = [len(set(names) - _scenarios(cell)) for cell in cells]
    yield f"| | {' | '.join(f'{count} of {len(names)}' for count in passed)} |"


def _why(cell: Cell) -> Iterator[str]:
    if not cell.reasons():
        return
    yield f"`{cell.name}`:\n"
    yield "| does not pass | because |"
    yield "|---|---|"
    names: dict[str, list[str]] = {}
    for name, reason in cell.reasons().items():
        names.setdefault(reason, []).append(f"`{name}`")
    for reason, alike in names.items():
        yield f"| {', '.join(alike)} | {reason} |"
    yield ""


def _scenarios(cell: Cell) -> set[str]:
    return {entry.partition(":")[0] for entry in cell.reasons()}


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables(install()) + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
