"""`kars audit`: the words and exit codes of `verify` and `tail`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML
from unit.audit.audit_kit import ALLOW, call, lines, opened, whole_call

from kars_router.cli.audit import command
from kars_router.cli.errors import Boundary

Run = Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kars(*words: str) -> int:
    """Runs `kars audit` as the entry point does."""
    boundary = Boundary()
    with boundary:
        status = command.main([*words], prog_name="kars audit", standalone_mode=False, obj=boundary)
        boundary.status = status if isinstance(status, int) else 0
    return boundary.status


def two_calls(directory: Path, **settings: object) -> None:
    journal = opened(directory, **settings)
    whole_call(journal, "c1")
    whole_call(journal, "c2")
    journal.close()


def test_a_whole_chain(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_calls(place)
    assert kars("verify", "audit.jsonl") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "valid: 10 records, 1 to 10"
    assert out[1] == f"head: {json.loads(lines(place)[-1])['hash']}"
    assert out[2].startswith("signed up to record 10; key ")
    assert out[2].endswith(" (as the files name it; trust one with --key)")
    assert len(out) == 3


def test_a_trusted_key(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_calls(place)
    (place / "other").mkdir()
    two_calls(place / "other")
    assert kars("verify", "audit.jsonl", "--key", "audit.jsonl.pub") == 0
    assert capsys.readouterr().out.endswith(" (trusted)\n")
    assert kars("verify", "audit.jsonl", "--key", "other/audit.jsonl.pub") == 1
    assert "audit.jsonl:2: it is signed by the key" in capsys.readouterr().out
    assert kars("verify", "audit.jsonl", "--key", "audit.jsonl") == 1
    assert capsys.readouterr().err == "kars: audit.jsonl holds no public key in PEM\n"


def test_the_first_bad_line_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_calls(place)
    found = lines(place)
    found[4] = found[4].replace(b"executed", b"unknown!")
    (place / "audit.jsonl").write_bytes(b"\n".join(found) + b"\n")
    assert kars("verify", "audit.jsonl") == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "audit.jsonl:5: its bytes do not have the hash that it ends in"
    assert out[1].startswith('  {"seq":5,')
    assert out[2] == "4 records before it are in order"
    assert kars("verify", "-o", "json", "audit.jsonl") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["valid"], answer["fault"]["line"], answer["records"]) == (False, 5, 4)


def test_what_a_bad_line_holds_is_harmless(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "x").write_bytes(b"\x1b[31m\xff\n")
    assert kars("verify", "x") == 1
    assert "\x1b" not in capsys.readouterr().out


def test_older_files_belong_to_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_calls(place, rotate=1024)
    assert kars("verify", "audit.jsonl") == 0
    whole = capsys.readouterr().out.splitlines()[0]
    assert whole.startswith("valid: ")
    assert ", 1 to " in whole
    assert kars("verify", "--alone", "audit.jsonl") == 0
    assert "begins in the middle: records 1 to " in capsys.readouterr().out
    assert kars("verify", "audit.jsonl.000001", "audit.jsonl.000002") == 0
    assert kars("verify", "audit.jsonl.000002", "audit.jsonl.000001") == 1
    assert "audit.jsonl.000001:1: " in capsys.readouterr().out


def test_calls_without_a_fate_and_a_torn_line_are_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = opened(place)
    journal.accepted(call(), ALLOW)
    with (place / "audit.jsonl").open("ab") as file:
        file.write(b'{"seq":4')
    assert kars("verify", "audit.jsonl") == 0
    out = capsys.readouterr().out
    assert "signed up to record 2, 1 records after that are not" in out
    assert "the last line was cut off while it was written (8 bytes)" in out
    assert "1 call without a fate: under way, or interrupted" in out
    journal.close()


def test_a_record_that_must_be_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_calls(place)
    head = json.loads(lines(place)[-1])["hash"]
    assert kars("verify", "audit.jsonl", "--expect", head.upper()) == 0
    path = place / "audit.jsonl"
    path.write_bytes(b"\n".join(lines(place)[:-1]) + b"\n")
    assert kars("verify", "audit.jsonl", "--expect", head) == 1
    assert f"the record with the hash {head} is not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("verify", "none"), ("tail", "none"), ("verify", "."), ("tail", ".")]
)
def test_a_file_that_cannot_be_read(
    place: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str]
) -> None:
    assert kars(*words) == 3
    assert " cannot be read: " in capsys.readouterr().err


def test_the_last_records(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_calls(place)
    assert kars("tail", "audit.jsonl", "-n", "3") == 0
    headings, *found = capsys.readouterr().out.splitlines()
    assert headings.split() == ["SEQ", "TIME", "EVENT", "CALL", "SERVER", "DETAILS"]
    assert [row.split()[2] for row in found] == ["ended", "closed", "checkpoint"]
    assert "ruling=allow rule=reads fate=executed code=ok" in found[0]
    assert kars("tail", "audit.jsonl", "--call", "c2", "-o", "json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["event"] for row in answer] == ["accepted", "sent", "ended"]
    assert answer == [json.loads(line) for line in lines(place)[5:8]]
    assert kars("tail", "audit.jsonl", "-n", "1", "-o", "yaml") == 0
    (row,) = YAML(typ="safe").load(capsys.readouterr().out)
    assert row["event"] == "checkpoint"


def test_a_line_that_is_no_record(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "x").write_bytes(b"nothing\n")
    assert kars("tail", "x") == 1
    assert capsys.readouterr().err == (
        "kars: x:1 is not a record; look at it with `kars audit verify`\n"
    )


def test_the_group_has_both_commands() -> None:
    assert isinstance(command, click.Group)
    assert sorted(command.commands) == ["tail", "verify"]
