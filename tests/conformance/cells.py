"""Which combinations of agent and server are run, and what is expected to fail in each.

An agent or a server belongs to the handshake era or to the stateless one; a server may serve both.
`expected/` has one file for each combination. It is the suite's own format, one reason behind each
entry, and the source of the tables in docs/conformance.md:

- `server`, `client`: scenarios, or `scenario:check`, that the suite finds to fail;
- `hollow`: those that the suite does not score, or lets pass although nothing was shown.
"""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen
from conformance.suite import HANDSHAKE, REVISIONS

EXPECTED = Path(__file__).parent / "expected"
ERAS = ("handshake", "stateless")

_ENTRY = re.compile(r"\s*- (?P<name>\S+)(?: # (?P<reason>\S.*))?$")
_KEY = re.compile(r"(?P<key>\w+):(?: \[\])?$")


def era_of(revision: str) -> str:
    return "handshake" if revision == HANDSHAKE else "stateless"


@frozen
class Cell:
    """One combination.

    `leg` is the suite's word for whom it looks at: `server`, where the suite is the agent and
    speaks `revision`, or `client`, where the suite is the server and speaks it. `other` is the era
    of who is on the other side of the router: `dual` only as a server.
    """

    leg: str
    revision: str
    other: str

    @property
    def crossed(self) -> bool:
        """Whether the router has to translate: nothing else excuses a failure in the end."""
        return self.other not in ("dual", era_of(self.revision))

    @property
    def name(self) -> str:
        return f"{self.leg}-{self.revision}-{self.other}"

    @property
    def file(self) -> Path:
        return EXPECTED / f"{self.name}.yml"

    def expected(self, key: str) -> dict[str, str]:
        """The reasons by entry under `key`; an empty one where none is given."""
        found: dict[str, dict[str, str]] = {}
        at = ""
        for line in self.file.read_text(encoding="utf-8").splitlines():
            if match := _KEY.match(line):
                at = match["key"]
            elif match := _ENTRY.match(line):
                found.setdefault(at, {})[match["name"]] = match["reason"] or ""
        return found.get(key, {})

    def reasons(self) -> dict[str, str]:
        """Every entry of the file."""
        return {**self.expected(self.leg), **self.expected("hollow")}


SERVER_CELLS = [
    Cell("server", revision, other) for revision in REVISIONS for other in ("dual", *ERAS)
]
CLIENT_CELLS = [Cell("client", revision, other) for revision in REVISIONS for other in ERAS]
CELLS = [*SERVER_CELLS, *CLIENT_CELLS]
