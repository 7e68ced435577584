"""What was found out about releases, as the process that looked for it hands it over.

Pure. The one that asked checks everything again: it will print it, and hand it to an installer.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from attrs import field, frozen

from kars_router.update.text import one_line
from kars_router.update.versions import is_version


@frozen
class Findings:
    """What was found out.

    Attributes:
        newer: the releases after the installed one, oldest first.
        newest: the newest release that there is; empty if that could not be found out.
        problem: why it could not be, a sentence without its capital and full stop.
        page: where people read the release notes; empty if the package does not say.
        summaries: a line about releases, by version; not about every one.
        notes_problem: why there are no summaries, if there are none.
    """

    newer: tuple[str, ...] = ()
    newest: str = ""
    problem: str = ""
    page: str = ""
    summaries: Mapping[str, str] = field(factory=dict)
    notes_problem: str = ""

    @property
    def summary(self) -> str:
        """The line about the newest release; empty if there is none."""
        return self.summaries.get(self.newest, "")


def dump(findings: Findings) -> bytes:
    """Findings as one line of JSON."""
    return msgspec.json.encode(findings) + b"\n"


class _Sent(msgspec.Struct):
    newer: list[str]
    newest: str
    problem: str
    page: str
    summaries: dict[str, str]
    notes_problem: str


def load(output: bytes) -> Findings | None:
    """The findings in the last whole line of an output; None if there are none."""
    lines = output.split(b"\n")[:-1]
    if not lines:
        return None
    try:
        sent = msgspec.json.decode(lines[-1], type=_Sent)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    versions = [*sent.newer, *sent.summaries, *([sent.newest] if sent.newest else [])]
    if not all(map(is_version, versions)) or (sent.newer and sent.newer[-1] != sent.newest):
        return None
    return Findings(
        newer=tuple(sent.newer),
        newest=sent.newest,
        problem=one_line(sent.problem, 500),
        page=one_line(sent.page, 500),
        summaries={version: one_line(line) for version, line in sent.summaries.items()},
        notes_problem=one_line(sent.notes_problem, 500),
    )
