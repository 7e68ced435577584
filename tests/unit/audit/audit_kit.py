"""Calls, journals and what stands in their files, for tests of the audit journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
from attrs import define
from repository import ROOT

from kars_router.audit import Journal
from kars_router.audit.storage import numbered
from kars_router.audit.verify import Report, verify, with_older
from kars_router.config.schema import Audit, Fsync
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling

ALLOW = Decision(ruling=Ruling.ALLOW, rule="reads", source="toolpolicy")
DENY = Decision(ruling=Ruling.DENY, rule="no-writes", reason="It writes.", source="toolpolicy")
DONE = CallEnd(decision=ALLOW, fate=Fate.EXECUTED, result=b'{"content":[]}', seconds=0.25)
DENIED = CallEnd(decision=DENY, fate=Fate.NOT_EXECUTED, code="denied")
SCHEMA = jsonschema_rs.validator_for(
    msgspec.json.decode((ROOT / "docs" / "audit.schema.json").read_bytes())
)
NOT_SENT = CallEnd(decision=ALLOW, fate=Fate.NOT_EXECUTED, code="audit_unavailable")


@define
class Clock:
    """A wall clock that stands still."""

    now: float = 1_700_000_000.5

    def __call__(self) -> float:
        return self.now


def call(ident: str = "c1", arguments: bytes | None = b'{"a":1}', **fields: Any) -> GovernedCall:
    """A call of one tool; `ident` is its id."""
    params = b'{"name":"look"%b}' % (b',"arguments":' + arguments if arguments else b"")
    given = {"agent": "a1", "server": "box", "method": "tools/call", "name": "look"}
    return GovernedCall(id=ident, params=params, **{**given, **fields})


def opened(directory: Path, **settings: Any) -> Journal:
    """A journal in a directory, which is its state directory as well."""
    given = {"path": directory / "audit.jsonl", "fsync": Fsync.NEVER}
    return Journal.open(
        Audit(**{**given, **settings}), state=directory, metrics=None, clock=Clock()
    )


def whole_call(journal: Journal, name: str) -> None:
    """Records a call from its beginning to its end."""
    journal.accepted(call(name), ALLOW)
    journal.sent(name, 1)
    journal.ended(name, DONE)


def lines(directory: Path) -> list[bytes]:
    """All lines of the journal in a directory, the older files first."""
    path = directory / "audit.jsonl"
    found = [*numbered(path), path]
    return [line for each in found if each.exists() for line in each.read_bytes().splitlines()]


def rows(directory: Path) -> list[dict[str, Any]]:
    """All records of the journal in a directory, each as the schema says."""
    found = [msgspec.json.decode(line) for line in lines(directory)]
    for row in found:
        SCHEMA.validate(row)
    return found


def events(directory: Path) -> list[str]:
    """What the records in a directory are about, in order."""
    return [row["event"] for row in rows(directory)]


def fates(directory: Path) -> dict[str, str]:
    """The fate of each call that has one; a call with two is an error."""
    found: dict[str, str] = {}
    for row in rows(directory):
        if row["event"] == "ended":
            assert row["call"] not in found
            found[row["call"]] = row["fate"]
    return found


def checked(directory: Path) -> Report:
    """The report on the journal in a directory."""
    return verify(with_older(directory / "audit.jsonl"))
