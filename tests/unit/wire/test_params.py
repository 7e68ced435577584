from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kars_router.wire.headers import decode_value
from kars_router.wire.params import HeaderPlan, InvalidAnnotation, plan

ANNOTATED = {"type": "string", "x-mcp-header": "Region"}


def properties(**inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": inner}


def annotated(kind: str = "string", header: Any = "Value") -> dict[str, Any]:
    return {"type": kind, "x-mcp-header": header}


def encoded(**arguments: Any) -> bytes:
    return msgspec.json.encode(arguments)


def pairs(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(f"Mcp-Param-{name}".encode(), value.encode()) for name, value in headers.items()]


ONE = plan(properties(value=annotated()))
NUMBER = plan(properties(value=annotated("integer")))

# --- annotations -----------------------------------------------------------------------------


def test_annotations_are_found_at_any_depth() -> None:
    schema = properties(
        region=ANNOTATED,
        query={"type": "string", "default": {"x-mcp-header": "no schema"}},
        where=properties(zone=annotated("integer", "Zone"), **{"x.y": annotated("boolean", "XY")}),
    )
    assert plan(schema) == HeaderPlan(
        {
            "mcp-param-region": ("region",),
            "mcp-param-zone": ("where", "zone"),
            "mcp-param-xy": ("where", "x.y"),
        }
    )


@pytest.mark.parametrize(
    "schema",
    [
        None,
        True,
        [],
        {},
        properties(),
        {"properties": []},
        {"properties": {"a": True}},
        {"enum": [{"x-mcp-header": "A"}], "const": ANNOTATED, "examples": [ANNOTATED]},
        {"default": {"a": ANNOTATED}, "additional": {"a": ANNOTATED}},
        properties(**{"x-mcp-header": {"type": "string"}}),
        {"allOf": True, "$defs": [], "not": None},
    ],
)
def test_a_schema_without_annotations_plans_nothing(schema: Any) -> None:
    found = plan(schema)
    assert not found
    assert found.headers(b'{"a":1}') == {}
    assert found.mismatch(b'{"a":1}', pairs(a="2")) is None


@pytest.mark.parametrize("kind", ["number", "object", "array", "null", None, ["string"], 5])
def test_only_some_types_may_be_annotated(kind: Any) -> None:
    with pytest.raises(InvalidAnnotation, match="on no string"):
        plan(properties(value=annotated(kind)))


@pytest.mark.parametrize(
    "header", ["", "My Region", "A:B", "R\u00e9gion", "A\t1", "A\n", "A\r\nB: c", 5, None, {}, True]
)
def test_an_annotation_is_a_token(header: Any) -> None:
    with pytest.raises(InvalidAnnotation, match="no header name"):
        plan(properties(value=annotated(header=header)))


@pytest.mark.parametrize("header", ["A", "a-b", "x.y_z", "!#$%&'*+-.^_`|~09", "Method"])
def test_any_token_will_do(header: str) -> None:
    assert list(plan(properties(value=annotated(header=header))).paths) == [
        f"mcp-param-{header.lower()}"
    ]


@pytest.mark.parametrize(("one", "other"), [("Region", "Region"), ("MyField", "myfield")])
def test_annotations_are_unique_but_for_case(one: str, other: str) -> None:
    schema = properties(a=annotated(header=one), b=properties(c=annotated(header=other)))
    with pytest.raises(InvalidAnnotation, match="more than once"):
        plan(schema)


@pytest.mark.parametrize(
    "schema",
    [
        *(
            {keyword: ANNOTATED}
            for keyword in (
                "additionalItems",
                "additionalProperties",
                "contains",
                "contentSchema",
                "else",
                "if",
                "items",
                "not",
                "propertyNames",
                "then",
                "unevaluatedItems",
                "unevaluatedProperties",
            )
        ),
        *({keyword: [{}, ANNOTATED]} for keyword in ("allOf", "anyOf", "oneOf", "prefixItems")),
        *(
            {keyword: {"a": ANNOTATED}}
            for keyword in (
                "$defs",
                "definitions",
                "dependencies",
                "dependentSchemas",
                "patternProperties",
            )
        ),
        {"items": properties(a=ANNOTATED)},
        properties(a={"anyOf": [properties(b=ANNOTATED)]}),
    ],
)
def test_an_annotation_anywhere_else_is_wrong(schema: Any) -> None:
    for whole in (schema, properties(region=annotated(), deep=schema)):
        with pytest.raises(InvalidAnnotation, match="something else"):
            plan(whole)


def test_the_root_is_no_property() -> None:
    with pytest.raises(InvalidAnnotation, match="something else"):
        plan(ANNOTATED)


def test_depth_is_no_danger() -> None:
    schema: dict[str, Any] = ANNOTATED
    for _ in range(20_000):
        schema = {"not": schema}
    with pytest.raises(InvalidAnnotation):
        plan(schema)


# --- as a client -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        (b'{"value":"us-west1"}', "us-west1"),
        (rb'{"value":"\u0061"}', "a"),
        (b'{"value":" padded "}', "=?base64?IHBhZGRlZCA=?="),
        (b'{"value":""}', "=?base64??="),
        (b'{"value":true}', "true"),
        (b'{"value": false}', "false"),
        (b'{"value":42}', "42"),
        (b'{"value":-7}', "-7"),
        (b'{"value":-0}', "0"),
        (b'{"value":-0.0}', "0"),
        (b'{"value":42.0}', "42"),
        (b'{"value":1E2}', "100"),
        (b'{"value":9007199254740993}', "9007199254740993"),
        (b'{"value":123456789012345678901234567890}', "123456789012345678901234567890"),
        (b'{"value":1e300}', "1" + "0" * 300),
        (b'{"value":1e999999999}', "1e999999999"),
        (b'{"value":1e99999999999999999999}', "1e99999999999999999999"),
        (b'{"value":0e999999999}', "0e999999999"),
        (b'{"value":1.50}', "1.50"),
        (b'{"value":null}', None),
        (b'{"value":{}}', None),
        (b'{"value":[1]}', None),
        (b'{"other":1}', None),
        (b"{}", None),
        (b"", None),
        (b"null", None),
        (b"[1]", None),
    ],
)
def test_an_argument_as_a_header(arguments: bytes, header: str | None) -> None:
    expected = {} if header is None else {"mcp-param-value": header}
    assert ONE.headers(arguments) == expected


def test_arguments_inside_of_others() -> None:
    found = plan(
        properties(
            a=properties(
                b=properties(c=annotated(header="C"), d=annotated(header="D")),
                e=annotated("integer", "E"),
            ),
            f=annotated("boolean", "F"),
        )
    )
    assert found.headers(b'{"a":{"b":{"c":"1","d":null},"e":2},"f":true}') == {
        "mcp-param-c": "1",
        "mcp-param-e": "2",
        "mcp-param-f": "true",
    }
    assert found.headers(b'{"a":{"b":"c"},"f":false}') == {"mcp-param-f": "false"}
    assert found.headers(b'{"a":[{"e":1}]}') == {}


# --- as a server -----------------------------------------------------------------------------


@given(st.text(max_size=8) | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.none())
@example("=?base64?x?=")
def test_what_is_sent_matches(value: str | bool | float | None) -> None:
    arguments = encoded(value=value)
    headers = ONE.headers(arguments)
    sent = [(name.upper().encode(), text.encode()) for name, text in headers.items()]
    assert ONE.mismatch(arguments, [(b"host", b"x"), *sent]) is None
    if isinstance(value, str):
        assert decode_value(headers["mcp-param-value"]) == value
    if value is not None:
        assert ONE.mismatch(arguments, []) == "the header mcp-param-value is missing"
        assert ONE.mismatch(arguments, pairs(value="other")) is not None


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        (b'{"value":42}', "42.0"),
        (b'{"value":42.0}', "42"),
        (b'{"value":1E2}', "100.00"),
        (b'{"value":1e+16}', "1e+16"),
        (b'{"value":-0}', "-0"),
        (b'{"value":9007199254740993}', "9007199254740993.0"),
        (b'{"value":"a"}', "=?base64?YQ==?="),
        (b'{"value":""}', ""),
        (b'{"value":"=?base64?YQ=="}', "=?base64?YQ=="),
    ],
)
def test_what_matches_although_it_is_written_otherwise(arguments: bytes, header: str) -> None:
    assert NUMBER.mismatch(arguments, pairs(value=header)) is None


@pytest.mark.parametrize(
    ("arguments", "headers", "words"),
    [
        (b'{"value":"a"}', pairs(value="A"), "does not match the body"),
        (b'{"value":"42"}', pairs(value="42.0"), "does not match the body"),
        (b'{"value":42}', pairs(value="42.5"), "does not match the body"),
        (b'{"value":42}', pairs(value="4.2e1"), "does not match the body"),
        (b'{"value":42}', pairs(value="+42"), "does not match the body"),
        (b'{"value":"a"}', pairs(value='"a"'), "does not match the body"),
        (b'{"value":42}', pairs(value="\u0664\u0662"), "cannot be decoded"),
        (b'{"value":9007199254740993}', pairs(value="9007199254740992"), "does not match"),
        (b'{"value":1e99999999999999999999}', pairs(value="1"), "does not match the body"),
        (b'{"value":true}', pairs(value="True"), "does not match the body"),
        (b'{"value":true}', pairs(value="1"), "does not match the body"),
        (b'{"value":"Hello"}', pairs(value="=?base64?SGVsbG8?="), "cannot be decoded"),
        (b'{"value":"Hello"}', pairs(value="=?base64?SGVs!!!bG8=?="), "cannot be decoded"),
        (b'{"value":"a"}', [], "is missing"),
        (b'{"value":"a"}', pairs(value="a", VALUE="a"), "occurs more than once"),
        (b'{"value":null}', pairs(value="a"), "is not there"),
        (b"{}", pairs(value=""), "is not there"),
        (b"", pairs(value="a"), "is not there"),
        (b'{"value":{}}', pairs(value="{}"), "is not there"),
    ],
)
def test_what_does_not_match(
    arguments: bytes, headers: list[tuple[bytes, bytes]], words: str
) -> None:
    wrong = NUMBER.mismatch(arguments, headers)
    assert wrong is not None
    assert wrong.startswith("the header mcp-param-value ")
    assert words in wrong


def test_headers_that_nobody_planned_are_ignored() -> None:
    sent = [*pairs(value="a", other="1"), (b"mcp-param-other", b"2"), (b"x\xff", b"\xff")]
    assert ONE.mismatch(b'{"value":"a","other":"3"}', sent) is None
