"""What is recorded, how the chain is signed, rotated and read again."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attrs import evolve
from unit.audit.audit_kit import (
    ALLOW,
    DENIED,
    DENY,
    DONE,
    SCHEMA,
    call,
    checked,
    events,
    fates,
    lines,
    opened,
    rows,
    whole_call,
)

from kars_router.audit import Journal, JournalError
from kars_router.audit import verify as verifying
from kars_router.audit.checkpoints import load_public, load_signer
from kars_router.audit.storage import numbered
from kars_router.audit.verify import verify, with_older
from kars_router.config.schema import Audit, AuditContent, Fsync
from kars_router.errors import UserError
from kars_router.model import CallEnd, Fate, Ruling
from kars_router.telemetry import Metrics


def test_only_a_denial_has_a_code(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for ident, ruling in enumerate((Ruling.ALLOW, Ruling.APPROVE, Ruling.DENY)):
        journal.accepted(call(str(ident)), evolve(DENY, ruling=ruling))
    journal.close()
    accepted = [row for row in rows(tmp_path) if row["event"] == "accepted"]
    assert [row.get("code") for row in accepted] == [None, None, "denied"]


def test_a_call_from_its_beginning_to_its_fate(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call(client="cli", subject="alice"), ALLOW)
    journal.sent("c1", 3)
    journal.ended("c1", DONE)
    journal.close()
    assert events(tmp_path) == [
        *("opened", "checkpoint", "accepted", "sent", "ended", "closed", "checkpoint")
    ]
    accepted, sent, ended = rows(tmp_path)[2:5]
    assert accepted["time"] == "2023-11-14T22:13:20.500000Z"
    assert {key: accepted[key] for key in ("call", "agent", "client", "subject", "server")} == {
        "call": "c1",
        "agent": "a1",
        "client": "cli",
        "subject": "alice",
        "server": "box",
    }
    assert (accepted["method"], accepted["name"]) == ("tools/call", "look")
    assert (accepted["ruling"], accepted["rule"]) == ("allow", "reads")
    assert (sent["call"], sent["generation"]) == ("c1", 3)
    assert (ended["fate"], ended["code"], ended["seconds"]) == ("executed", "ok", 0.25)


def test_each_record_is_in_the_file_before_the_call_returns(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    steps: list[Callable[[], None]] = [
        lambda: journal.accepted(call(), ALLOW),
        lambda: journal.sent("c1", 1),
        lambda: journal.ended("c1", DONE),
        lambda: journal.note("something"),
    ]
    for number, step in enumerate(steps):
        step()
        assert len(lines(tmp_path)) == 3 + number
    journal.close()


def test_the_hash_is_that_of_the_bytes_before_it(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    whole_call(journal, "c1")
    journal.close()
    before = "0" * 64
    for number, line in enumerate(lines(tmp_path), 1):
        row = msgspec.json.decode(line)
        assert (row["seq"], row["prev"]) == (number, before)
        before = row["hash"]
        assert hashlib.sha256(line[: line.rindex(b',"hash":"')]).hexdigest() == before


@pytest.mark.parametrize("content", AuditContent)
def test_content_by_choice_and_digests_always(tmp_path: Path, content: AuditContent) -> None:
    journal = opened(tmp_path, content=content)
    arguments, result = b'{ "pass\\u0077ord":\n 1.50 }', b'{"content":[],"isError":false}'
    journal.accepted(call(arguments=arguments), ALLOW)
    journal.ended("c1", CallEnd(decision=ALLOW, fate=Fate.EXECUTED, result=result))
    journal.close()
    accepted, ended = rows(tmp_path)[2:4]
    key = load_signer(None, tmp_path).digest_key
    assert accepted["arguments"].pop("digest") == hmac.new(key, arguments, "sha256").hexdigest()
    assert ended["result"].pop("digest") == hmac.new(key, result, "sha256").hexdigest()
    shown = content is not AuditContent.DIGEST
    assert accepted["arguments"] == {
        "bytes": len(arguments),
        **({"content": {"password": 1.5}} if shown else {}),
    }
    assert ended["result"] == {
        "bytes": len(result),
        **({"content": {"content": [], "isError": False}} if content == "all" else {}),
    }
    # What was written is what the agent wrote, not what we make of it.
    assert (b'{ "pass\\u0077ord":  1.50 }' in lines(tmp_path)[2]) == shown


def test_content_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    journal = opened(tmp_path, content=AuditContent.ALL)
    arguments = b'{"a":"%b"}' % (b"x" * (1 << 16))
    journal.accepted(call(arguments=arguments), ALLOW)
    journal.close()
    body = rows(tmp_path)[2]["arguments"]
    assert (body["bytes"], body["omitted"], "content" in body) == (len(arguments), True, False)


def test_a_call_without_arguments_has_no_digest_of_any(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call(arguments=None), ALLOW)
    journal.accepted(call("c2", name="n" * 5000), ALLOW)
    journal.close()
    accepted, long = rows(tmp_path)[2:4]
    assert "arguments" not in accepted
    assert long["name"] == "n" * 1023 + "…"


@pytest.mark.parametrize("text", ["\ud800", "\n", '"', "\x00", "é" * 2000, "\\", "\u2028"])
def test_whatever_an_agent_calls_itself(tmp_path: Path, text: str) -> None:
    journal = opened(tmp_path)
    journal.accepted(call(client=text, name=text, subject=text), ALLOW)
    journal.note(text, field=text)
    journal.close()
    assert checked(tmp_path).fault is None
    assert len(lines(tmp_path)) == 6


def test_a_held_call_and_what_was_decided(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call(), ALLOW)
    journal.held("c1", "ap1")
    journal.decided("c1", "ap1", Ruling.DENY, "operator")
    journal.ended("c1", DENIED)
    journal.close()
    held, decided, ended = rows(tmp_path)[3:6]
    assert (held["call"], held["approval"]) == ("c1", "ap1")
    assert (decided["ruling"], decided["by"]) == ("deny", "operator")
    assert (ended["ruling"], ended["rule"], ended["reason"]) == ("deny", "no-writes", "It writes.")


def test_a_note_is_never_an_error(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    loop: list[Any] = []
    loop.append(loop)
    journal.note("fine", path=Path("/x"), fate=Fate.UNKNOWN, number=1)
    for value in (loop, {1.5: object()}, "\ud800", 1 << 80, "x" * (1 << 17)):
        journal.note("odd", value=value)
    journal.close()
    fine, *odd = [row for row in rows(tmp_path) if row["event"] == "note"]
    assert fine["fields"] == {"path": "/x", "fate": "unknown", "number": 1}
    assert [row["note"] for row in odd] == ["odd"] * 5
    assert checked(tmp_path).fault is None


def test_records_are_as_the_schema_says(tmp_path: Path) -> None:
    journal = opened(tmp_path, content=AuditContent.ALL, rotate=4096)
    for number in range(8):
        whole_call(journal, f"a{number}")
    journal.accepted(call("h", client="c", subject="s"), DENY)
    journal.held("h", "ap")
    journal.decided("h", "ap", Ruling.ALLOW, "operator")
    journal.sent("h", 2)
    error = b'{"code":-32000,"message":"x"}'
    journal.ended("h", CallEnd(decision=ALLOW, fate=Fate.UNKNOWN, code="rpc", error=error))
    journal.note("session_opened", server="box")
    journal.note("plain")
    journal.accepted(call("left"), ALLOW)
    journal.close()
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"seq"')
    opened(tmp_path).close()
    seen = set()
    for line in lines(tmp_path):
        SCHEMA.validate(msgspec.json.decode(line))
        seen.add(msgspec.json.decode(line)["event"])
    assert seen == {
        *("opened", "continued", "recovered", "accepted", "held", "decided", "sent", "ended"),
        *("note", "checkpoint", "closed"),
    }
    broken = {**msgspec.json.decode(lines(tmp_path)[-1]), "surprise": 1}
    assert not SCHEMA.is_valid(broken)


def test_a_checkpoint_after_so_many_records(tmp_path: Path) -> None:
    journal = opened(tmp_path, checkpoint=5)
    for number in range(10):
        journal.note(f"n{number}")
    found = events(tmp_path)
    assert found[:2] == ["opened", "checkpoint"]
    assert [index for index, event in enumerate(found) if event == "checkpoint"] == [1, 7, 13]
    journal.close()
    report = checked(tmp_path)
    assert (report.checkpoints, report.signed) == (4, report.last)


def test_nothing_is_signed_twice(tmp_path: Path) -> None:
    journal = opened(tmp_path, checkpoint=2, rotate=4096)
    for number in range(10):
        whole_call(journal, f"c{number}")
        journal.checkpoint()
    journal.close()
    found = events(tmp_path)
    assert "continued" in found
    assert ("checkpoint", "checkpoint") not in pairwise(found)


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path).close()
    key = tmp_path / "audit-key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600
    report = checked(tmp_path)
    assert report.keys == [*load_public(tmp_path / "audit.jsonl.pub")]
    assert report.keys == [load_signer(None, tmp_path).fingerprint]
    assert {row["key"] for row in rows(tmp_path) if row["event"] == "checkpoint"} == {*report.keys}


def test_only_a_trusted_key_will_do(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "audit.jsonl"
    right = load_public(tmp_path / "audit.jsonl.pub")
    assert verify([path], trusted=right).fault is None
    (tmp_path / "other").mkdir()
    opened(tmp_path / "other").close()
    wrong = load_public(tmp_path / "other" / "audit.jsonl.pub")
    fault = verify([path], trusted=wrong).fault
    assert fault is not None
    assert (fault.line, "is not trusted" in fault.reason) == (2, True)
    assert verify([path], trusted={**wrong, **right}).fault is None


def test_without_state_the_key_dies_with_the_process(tmp_path: Path) -> None:
    settings = Audit(path=tmp_path / "audit.jsonl", fsync=Fsync.NEVER)
    for _ in range(2):
        Journal.open(settings, state=None, metrics=None).close()
    report = checked(tmp_path)
    assert (report.fault, len(report.keys)) == (None, 2)
    # All of them stand in the file for those who have to trust them.
    assert [*load_public(tmp_path / "audit.jsonl.pub")] == report.keys


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY" + "-----\nAAAA\n"])
def test_a_signing_key_that_is_none(tmp_path: Path, text: str) -> None:
    key = tmp_path / "key.pem"
    key.write_text(text)
    with pytest.raises(UserError, match=r"audit\.signingKey: .*key\.pem holds no private key"):
        opened(tmp_path, signing_key=key)
    assert not (tmp_path / "audit.jsonl").exists()


def test_rotation_keeps_the_chain(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotate=4096)
    journal.accepted(call("long"), ALLOW)
    journal.sent("long", 1)
    for number in range(40):
        whole_call(journal, f"c{number}")
    path = tmp_path / "audit.jsonl"
    older = numbered(path)
    assert [each.name for each in older[:2]] == ["audit.jsonl.000001", "audit.jsonl.000002"]
    assert len(older) >= 3
    journal.close()
    assert all(4096 <= each.stat().st_size < 4096 + 2048 for each in older)
    report = verify(with_older(path))
    assert (report.fault, report.first, report.unended) == (None, 1, ["long"])
    # Every file but the last ends signed, and every file but the first says why it was begun.
    for each in older:
        assert msgspec.json.decode(each.read_bytes().splitlines()[-1])["event"] == "checkpoint"
    alone = verify([path])
    assert (alone.fault, alone.begins, alone.unended) == (None, "rotated", ["long"])
    assert alone.first > 1
    fault = verify([older[0], older[2]]).fault
    assert fault is not None
    assert (fault.file, fault.line) == (str(older[2]), 1)
    # The call that is open since the first file gets its fate all the same.
    again = opened(tmp_path, rotate=4096)
    assert again.recovered == {"long": Fate.UNKNOWN}
    again.close()
    assert checked(tmp_path).unended == []


def test_an_older_file_is_never_overwritten(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotate=4096)
    (tmp_path / "audit.jsonl.000001").write_text("mine")
    for number in range(5):
        whole_call(journal, f"c{number}")
    journal.close()
    assert (tmp_path / "audit.jsonl.000001").read_text() == "mine"
    assert (tmp_path / "audit.jsonl.000002").exists()


def test_a_journal_that_rotates_while_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, rotate=4096)
    path = tmp_path / "audit.jsonl"
    whole_call(journal, "first")
    listed = verifying.with_older
    lists = []

    def and_then_rotates(place: Path) -> list[Path]:
        found = listed(place)
        lists.append(found)
        if len(lists) == 1:
            for number in range(10):
                whole_call(journal, f"c{number}")
        return found

    monkeypatch.setattr(verifying, "with_older", and_then_rotates)
    # The list has one file, and by the time that it is read the chain begins in another one.
    report = verifying.verify_journal(path)
    assert (report.fault, report.first) == (None, 1)
    assert len(lists[0]) < len(lists[-1])
    journal.close()


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotate=4096, keep=2)
    for number in range(60):
        whole_call(journal, f"c{number}")
    journal.close()
    names = [each.name for each in numbered(tmp_path / "audit.jsonl")]
    assert len(names) == 2
    assert "audit.jsonl.000001" not in names
    report = checked(tmp_path)
    assert (report.fault, report.begins) == (None, "rotated")
    assert report.first > 1
    opened(tmp_path, rotate=4096, keep=2).close()
    assert checked(tmp_path).fault is None


def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        journal = opened(tmp_path)
        whole_call(journal, f"c{number}")
        journal.close()
    report = checked(tmp_path)
    assert (report.fault, report.first, report.unended) == (None, 1, [])
    found = rows(tmp_path)
    assert [row["event"] for row in found].count("opened") == 3
    assert len({row["journal"] for row in found if row["event"] == "opened"}) == 1
    assert len(fates(tmp_path)) == 3


def test_two_routers_cannot_write_to_one_file(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(
        UserError, match=r"audit\.path: another process is writing to .*file of its own"
    ):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_symbolic_link_leads_to_the_same_file_and_the_same_lock(tmp_path: Path) -> None:
    first = opened(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "audit.jsonl")
    with pytest.raises(UserError, match="another process"):
        opened(tmp_path, path=tmp_path / "link.jsonl")
    first.close()


def test_places_that_cannot_be_a_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for path, sentence in (
        (tmp_path, "is a directory; name a file"),
        (tmp_path / "pipe", "is not a regular file; name a file"),
        (tmp_path / "file" / "audit.jsonl", "cannot be used"),
        (Path("/proc/audit.jsonl"), "cannot be used"),
    ):
        with pytest.raises(UserError, match=rf"audit\.path: .*{sentence}"):
            opened(tmp_path, path=path)


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"audit\.path: .* cannot be used: Permission denied"):
        opened(tmp_path)


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.close()
    journal.close()
    before = lines(tmp_path)
    with pytest.raises(JournalError, match="closed"):
        journal.accepted(call(), ALLOW)
    journal.ended("c1", DONE)
    journal.checkpoint()
    assert lines(tmp_path) == before


def test_what_is_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    settings = Audit(path=tmp_path / "audit.jsonl", fsync=Fsync.NEVER)
    for _ in range(2):
        journal = Journal.open(settings, state=tmp_path, metrics=metrics)
        whole_call(journal, "c1")
        journal.close()
    text = metrics.render().decode()
    assert f"kars_audit_records_total {len(lines(tmp_path))}.0\n" in text
    assert "kars_audit_healthy 1.0\n" in text
