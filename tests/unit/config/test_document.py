from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.config.document import (
    DEEPEST,
    LARGEST,
    LONGEST,
    decode,
    parse_document,
    write_document,
)
from kars_router.config.problems import InvalidError
from kars_router.config.yaml_document import parse_yaml


def read(text: str) -> object:
    data, problems = parse_document(text)
    assert problems == []
    return data


def refusal(text: str) -> str:
    with pytest.raises(InvalidError) as caught:
        parse_document(text)
    (problem,) = caught.value.problems
    return problem.line


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", None),
        ("# only a remark\n", None),
        ("a: 1", {"a": 1}),
        ("a:\r\n  - b\r\n  - c\r\n", {"a": ["b", "c"]}),
        ("a: [0x1f, 0o17, -1_000, 012, 1e3, .5]", {"a": [31, 15, -1000, 12, 1000.0, 0.5]}),
        ("a: [true, True, false, null, ~]", {"a": [True, True, False, None, None]}),
        ("a: [yes, no, on, off]", {"a": ["yes", "no", "on", "off"]}),
        ("a: [.inf, -.inf]", {"a": [float("inf"), float("-inf")]}),
        ("a: 2024-13-45", {"a": "2024-13-45"}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: '5'", {"a": "5"}),
        ("a: !!str 5", {"a": "5"}),
        ("a: =", {"a": "="}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
    ],
)
def test_yaml(text: str, data: object) -> None:
    assert read(text) == data


def test_json() -> None:
    text = '{\n\t"a": [1, 2.5, true, null, "\\ud83d\\ude00", "\\u00fc"],\n\t"b": {"c": "/\\/"}\n}\n'
    assert read(text) == {"a": [1, 2.5, True, None, "😀", "ü"], "b": {"c": "//"}}


def outcome(parse: Any, text: str) -> str:
    """What comes of a text, with types: `1`, `1.0` and `True` differ, as do `0.0` and `-0.0`."""
    try:
        return repr(parse(text))
    except InvalidError as error:
        return repr(error.problems)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": {"c": 2, "c": 3}}',
        '{"a": "\\ud83d"}',
        '{"a": {"\\udc00": 1}}',
        '{"a": [NaN, Infinity, -Infinity]}',
        '{"a": 1' + "0" * 5000 + "}",
        '{"a": ' + "[" * DEEPEST + "]" * DEEPEST + "}",
        '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"a": "x\x85y\u2028z"}',
        '{"a": "\ufeff"}',
        '{"a": "x\n  y"}',
        '{"a": 1,}',
        '{"a": 1} # one',
        '{"a": 1}\n---\n{"b": 2}',
        '{"a": 1',
        "{a: 012}",
        '["a"]',
        '"a"',
        "1",
        "null",
    ],
)
def test_what_is_not_plain_json_is_told_as_ever(text: str) -> None:
    assert outcome(parse_document, text) == outcome(parse_yaml, text)


def test_json_has_the_same_limits() -> None:
    deepest = '{"a": ' + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1) + "}"
    largest = '{"a": [' + "0, " * (LARGEST - 4) + "0]}"
    for text in (deepest, largest):
        assert read(text) == json.loads(text)
    for text in (deepest.replace("[]", "[[]]"), largest.replace("[0", "[0, 0")):
        assert "more than" in refusal(text)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["yes", "1e3", "0x1f", "~", "<<", "=", "2024-01-01", "1:30", "*a", "a: b"])
)
_KEYS = st.text(max_size=5) | st.sampled_from(["<<", "=", "1", "null", "true", "? a"])
_JSON = st.dictionaries(
    _KEYS,
    st.recursive(
        _SCALARS,
        lambda some: st.lists(some, max_size=4) | st.dictionaries(_KEYS, some, max_size=4),
        max_leaves=12,
    ),
    max_size=4,
)


@given(_JSON, st.booleans(), st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_json_is_read_as_yaml_would_read_it(
    data: dict[str, Any], escaped: bool, indent: int | str | None, tight: bool
) -> None:
    separators = (",", ":") if tight else None
    text = json.dumps(data, ensure_ascii=escaped, indent=indent, separators=separators)
    # A remark is all that it takes to be no JSON.
    assert outcome(parse_document, text) == outcome(parse_document, f"{text}\n#")


@given(_JSON, st.floats(0, 1), st.sampled_from(["", ",", "}", '"', "#", "\n", "\\", "0", "a"]))
def test_a_damaged_text_is_told_as_ever(data: dict[str, Any], where: float, piece: str) -> None:
    text = json.dumps(data).replace("\x7f", "")  # is refused before either reads it
    at = int(where * len(text))
    damaged = text[:at] + piece + text[at + 1 :]
    assert outcome(parse_document, damaged) == outcome(parse_yaml, damaged)


@given(_JSON)
def test_what_is_written_is_json_and_read_back(data: dict[str, Any]) -> None:
    text = write_document(data)
    assert json.loads(text) == data
    assert outcome(parse_document, text) == repr((data, []))
    assert "\x85" not in text  # or YAML would be needed to read it


def test_what_is_written_can_be_read_by_people() -> None:
    text = write_document({"b": "Zoë \x85\x7f\uffff", "a": [{"c": None}], "d": 1.5})
    assert text == (
        '{\n  "b": "Zoë \\u0085\\u007f\\uffff",\n  "a": [\n    {\n      "c": null\n    }\n  ],\n'
        '  "d": 1.5\n}\n'
    )


def test_aliases_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4}]}\nd: *a\n"
    assert read(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"y": 3, "x": 1},
        "c": {"x": 1, "y": 2, "z": 4},
        "d": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [\nb: c", "line 2, column 5: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n b: 2", "line 2, column 3: mapping values are not allowed here"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        (
            "a: 1\n---\nb: 2\n",
            "line 2, column 1: a second document begins, and one is all that is read",
        ),
        ("a: 1\nb: \x07", "line 2, column 4: holds the character '\\x07'"),
        ("a: '\ud800'", "line 1, column 5: holds the character '\\ud800'"),
        ('"\\UFFFFFFFF"', "is not YAML"),
    ],
)
def test_syntax_errors_have_one_line_with_their_place(text: str, line: str) -> None:
    assert refusal(text) == line


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", ["a: is given twice, on line 1 and line 3; keep one"]),
        (
            '{"a": {"b": 1, "b": 2}, "a": 0}',
            [
                "a.b: is given twice, on line 1 and line 1; keep one",
                "a: is given twice, on line 1 and line 1; keep one",
            ],
        ),
        (
            "a: !!python/object:os.system x",
            ["a: cannot be read as 'python/object:os.system': line 1"],
        ),
        ("a: !mine {b: 1}", ["a: has a tag that is not known here: line 1"]),
        ("a: !!set {b}", ["a: has a tag that is not known here: line 1"]),
        ("a: !!binary aGk=", ["a: cannot be read as 'binary': line 1"]),
        ("a: !!int x", ["a: cannot be read as 'int': line 1"]),
        ("a: 9" + "9" * 5000, ["a: cannot be read as 'int': line 1"]),
        ("? [a]\n: 1", ["has a key that is no string: line 1"]),
        ("a: {<<: 5}", ["a: merges what is no mapping: line 1"]),
        ('a: "\\ud83d"', ["a: cannot be read as 'str': line 1"]),
    ],
)
def test_mistakes_that_the_data_cannot_show(text: str, lines: list[str]) -> None:
    _, problems = parse_document(text)
    assert [problem.line for problem in problems] == lines


def test_the_first_of_doubled_keys_is_kept() -> None:
    assert parse_document("a: 1\na: 2")[0] == {"a": 1}


def test_a_billion_laughs_end_at_a_count() -> None:
    text = "a0: &a0 [ha, ha]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
    )
    tracemalloc.start()
    try:
        assert refusal(text) == f"holds more than {LARGEST} values, counting every use of an alias"
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_an_alias_within_itself_ends() -> None:
    assert refusal("a: &a\n  b: *a").startswith(f"is nested more than {DEEPEST} deep")


@pytest.mark.parametrize("depth", [DEEPEST + 1, 50_000])
def test_depth_has_a_limit(depth: int) -> None:
    assert refusal("[" * depth + "]" * depth).startswith(f"is nested more than {DEEPEST} deep")
    assert read("[" * DEEPEST + "]" * DEEPEST)


def test_files_are_utf_8_of_a_limited_length() -> None:
    assert decode("\ufeffa: ü".encode()) == "a: ü"
    assert decode(b" " * LONGEST)
    for data, line in (
        (b" " * (LONGEST + 1), "is longer than 1 MiB"),
        (b"a: \xff", "is not UTF-8 text: byte 3 is wrong"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text: byte 0 is wrong"),
    ):
        with pytest.raises(InvalidError) as caught:
            decode(data)
        assert [problem.line for problem in caught.value.problems] == [line]


# Pieces without white space, parted by some of it.
_PIECES = (
    ": - ? [ ] { } , &a *a << ! !! !< > | ' \" \\ # % --- ... %YAML %TAG 1.1 @ ` = ~ a 1 a: -1"
    " !!int !!map !!seq !!merge \\x \\UFFFFFFFF .inf 0x \x85 \u2028 \ufeff"
)
_YAMLISH = st.lists(st.sampled_from([*_PIECES.split(" "), " ", "\n", "\n  ", "\t"]), max_size=25)


@given(st.text(max_size=60) | _YAMLISH.map("".join))
def test_any_text_is_data_or_one_refusal(text: str) -> None:
    try:
        _, problems = parse_document(text)
    except InvalidError as error:
        (problem,) = error.problems
        problems = [problem]
    assert all(problem.line.isprintable() for problem in problems)
