from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from attrs import frozen
from ruamel.yaml import YAML

from kars_router.cli.output import clean, dump, emit, table, wants_colour
from kars_router.model import Fate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@frozen
class Sample:
    name: str
    fate: Fate
    path: Path


VALUE = {
    "z": [Sample("ü", Fate.UNKNOWN, Path("/a"))],
    "a": {"no": "no", "one": "1", "none": None, "yes": True, "x": 1.5},
}
PLAIN = {"z": [{"name": "ü", "fate": "unknown", "path": "/a"}], "a": VALUE["a"]}


def test_json_and_yaml_keep_values_and_the_order_of_keys() -> None:
    for text, back in (
        (dump(VALUE, "json"), json.loads(dump(VALUE, "json"))),
        (dump(VALUE, "yaml"), YAML(typ="safe", pure=True).load(dump(VALUE, "yaml"))),
    ):
        assert back == PLAIN
        assert list(back) == ["z", "a"]
        assert text.index('"z"' if text[0] == "{" else "z:") < text.index("yes")
        assert not text.endswith("\n")


def test_a_table_has_aligned_columns() -> None:
    text = table(["NAME", "CALLS"], [["web", 12], ["a-long-name", None]])
    assert text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines() == [
        "NAME         CALLS",
        "web          12",
        "a-long-name",
    ]


def test_a_table_without_rows_is_its_headings() -> None:
    assert "A  B" in table(["A", "B"], [])


def test_text_from_elsewhere_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b[2Jb\r\nc\u202e\ud800 ü") == "a\\x1b[2Jb\\r\\nc\\u202e\\ud800 ü"
    assert "\x1b[2J" not in table(["X"], [["\x1b[2J"]])


def test_the_table_is_only_made_when_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> str:
        raise AssertionError

    emit({"a": 1}, "json", never)
    emit({"a": 1}, "yaml", never)
    emit({"a": 1}, "table", lambda: "text")
    assert capsys.readouterr().out == '{\n  "a": 1\n}\na: 1\ntext\n'


def test_there_is_no_colour_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    emit([], "table", lambda: table(["A"], []))
    assert capsys.readouterr().out == "A\n"


@pytest.mark.parametrize(
    ("stream", "environ", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_when_there_is_colour(stream: io.StringIO, environ: dict[str, str], wanted: bool) -> None:
    assert wants_colour(stream, environ) is wanted
