from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kars_plugin_toolpolicy.jsonspans import LITERAL, resolve
from kars_plugin_toolpolicy.redaction import Redactor

from kars_router.config.toolpolicy import Redact, SecretKind
from kars_router.model import GovernedCall

TOKEN = "ghp_aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzAbC"
HIDDEN = "[redacted:github]"
FIELD = "[redacted:field]"


def call(params: Any = None, **changes: Any) -> GovernedCall:
    raw = params if isinstance(params, bytes) else json.dumps(params or {}).encode()
    return GovernedCall(
        id="1", agent="a", server="s", method="tools/call", name="t", params=raw, **changes
    )


def incoming(body: bytes, *terms: Redact) -> bytes:
    return Redactor(lambda _: terms or (Redact(),)).incoming(call(), body)


def outgoing(params: Any, **terms: Any) -> Any:
    redactor = Redactor(lambda _: (Redact(arguments=True, **terms),))
    return json.loads(redactor.outgoing(call(params)))


def result(value: Any, **terms: Any) -> Any:
    return json.loads(incoming(json.dumps(value).encode(), Redact(**terms)))


# --- where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"content": [{"type": "text", "text": f"a {TOKEN} b"}]},
        {"structuredContent": {"rows": [{"x": [TOKEN]}]}},
        {"content": [{"type": "resource", "resource": {"uri": "a:b", "text": TOKEN}}]},
        {"content": [{"type": "resource_link", "uri": f"https://a/{TOKEN}", "name": "x"}]},
        {"code": -32000, "message": f"bad credentials {TOKEN}"},
        {"code": -32000, "message": "no", "data": TOKEN},
        {"code": -32000, "message": "no", "data": {"headers": {"x": TOKEN}}},
        {"progress": 1, "message": TOKEN},
        {TOKEN: 1},
        {"_meta": {"x": TOKEN}},
        TOKEN,
    ],
)
def test_every_string_is_looked_at(body: Any) -> None:
    assert result(body) == json.loads(json.dumps(body).replace(TOKEN, HIDDEN))


def test_everything_else_stays_as_the_server_wrote_it() -> None:
    body = (
        b' {"a" : 1.0e+2, "big":123456789012345678901234567890,\n"z":-0.0, "\\u00e9":"\\/\\u00e9",'
        b'"t":"x %s","t":null, "s":"\xc3\xa9 \\n", "half":"\\ud800" } '
    )
    assert incoming(body % TOKEN.encode()) == body % HIDDEN.encode()


def test_what_holds_no_secret_is_the_very_same_object() -> None:
    body = json.dumps({"content": [{"type": "text", "text": "token key password api"}]}).encode()
    assert incoming(body) is body
    assert incoming(body, Redact(expressions=("zzz+",), fields=("/nothing",))) is body
    asked = call({"arguments": {"a": "b"}})
    assert Redactor(lambda _: (Redact(arguments=True),)).outgoing(asked) is asked.params


@pytest.mark.parametrize(
    "spelled",
    [
        "".join(f"\\u{ord(character):04x}" for character in TOKEN),
        "".join(f"\\u{ord(character):04X}" for character in TOKEN),
        f"\\u0067{TOKEN[1:]}",
        f"{TOKEN[:-1]}\\u0043",
        f"\\n{TOKEN}\\t",
        f'\\"{TOKEN}\\"',
        f"\\\\n{TOKEN}",
        f"\\/{TOKEN}",
    ],
)
def test_escapes_hide_nothing(spelled: str) -> None:
    body = f'{{"text":"{spelled}"}}'
    expected = json.loads(body)["text"].replace(TOKEN, HIDDEN)
    assert json.loads(incoming(body.encode()))["text"] == expected
    assert HIDDEN in expected


def test_json_within_a_text_hides_nothing_either() -> None:
    inner = json.dumps({"a": TOKEN, "password": "hunter", "u": "https://u:p@h/"})
    again = inner.replace("g", "\\u0067", 1).replace("/", "\\/")
    for text in (inner, again):
        cleaned = json.loads(result({"text": text})["text"])
        assert cleaned == {
            "a": HIDDEN,
            "password": "[redacted:password]",
            "u": "https://[redacted:url-credentials]@h/",
        }


def test_a_member_that_is_called_a_password_is_one() -> None:
    body = {"password": "correct horse", "Client-Secret": "abcd", "nested": {"apiKey": "abcdefgh"}}
    hidden = "[redacted:password]"
    assert result(body) == {
        "password": hidden,
        "Client-Secret": hidden,
        "nested": {"apiKey": hidden},
    }


@pytest.mark.parametrize(
    "body",
    [
        {"properties": {"password": {"type": "string", "title": "a long enough title"}}},
        {"password": None, "secret": True, "apiKey": 123456},
        {"password": "", "api_key": "required", "secret": "<secret>"},
        {"password": ["a long enough text"]},
        {"passwords": "some of them", "nextPageToken": "abcdef123456"},
        {"x": "password", "y": "correct horse"},
    ],
)
def test_what_only_looks_like_a_password_member_stays(body: Any) -> None:
    raw = json.dumps(body).encode()
    assert incoming(raw) is raw


def test_handles_that_the_other_side_has_to_get_back_stay() -> None:
    body = {
        "resultType": "input_required",
        "requestState": TOKEN,
        "inputRequests": {"a": {"params": {"message": TOKEN, "requestState": TOKEN}}},
    }
    cleaned = result(body)
    assert cleaned["requestState"] == TOKEN
    assert cleaned["inputRequests"]["a"]["params"] == {"message": HIDDEN, "requestState": HIDDEN}
    assert result({"progressToken": TOKEN, "message": TOKEN})["progressToken"] == TOKEN


def test_pictures_stay() -> None:
    data = ("AKIAIOSFODNN7EXAMPLE" + "A" * 60) * 10
    every = Redact(expressions=("[A-Z]{4,}", "image"))
    for body in (
        {"content": [{"type": "x", "data": data, "mimeType": "a/b"}]},
        {"contents": [{"uri": "a:b", "blob": data}]},
    ):
        raw = json.dumps(body).encode()
        assert incoming(raw, every) is raw
    small = f'{{"data" : "{"A" * 60}+AKIAIOSFODNN7EXAMPLE/{"A" * 59}"}}'.encode()
    assert incoming(small) is small
    assert incoming(small.replace(b"data", b"date")) is not small
    assert result({"data": "card 4111" * 20}, expressions=("card",))["data"].count("card") == 0
    assert result({"data": TOKEN})["data"] == HIDDEN
    assert result({"data": f"{TOKEN} " * 20})["data"] == f"{HIDDEN} " * 20


# --- what ------------------------------------------------------------------------------------


def test_only_the_kinds_that_are_asked_for() -> None:
    body = {"a": TOKEN, "b": "password=hunter"}
    only = result(body, kinds=(SecretKind.PASSWORD,))
    assert only == {"a": TOKEN, "b": "password=[redacted:password]"}
    assert result(body, kinds=(), expressions=("nothing",)) == body


def test_expressions_are_looked_for_in_what_strings_say() -> None:
    body = '{"a":"card 4111\\u0020\\u0031111","card":1,"caf\\u00e9":"x"}'
    expressions = Redact(kinds=(), expressions=(r"\d{4} \d{4}", "caf\u00e9"))
    assert json.loads(incoming(body.encode(), expressions)) == {
        "a": "card [redacted:expression]",
        "card": 1,
        "[redacted:expression]": "x",
    }


def test_expressions_are_found_anywhere_in_a_long_text() -> None:
    for place in (0, 16_379, 17_398, 49_151, 65_536):
        text = "x" * place + "-need" + "l" * 3000 + "e-" + "\u00e4" * 40_000 + "-"
        cleaned = result({"t": text}, kinds=(), expressions=("-needl+e-",))
        assert cleaned["t"] == "x" * place + "[redacted:expression]" + "\u00e4" * 40_000 + "-"


def test_fields_lose_whatever_they_hold() -> None:
    structured = {
        "rows": [{"ssn": 123, "a/b": {"x": [1]}}, {"ssn": None}, {"other": 1}],
        "deep": {"a": {"k": "v1"}, "b": {"k": "v2", "j": 1}},
        "list": ["a", "b", "c"],
        "": "empty",
    }
    body = {"content": [], "structuredContent": structured, "rows": [{"ssn": 123}]}
    fields = ("/rows/*/ssn", "/rows/0/a~1b", "/deep/*/k", "/list/1", "/absent/x", "/list/01", "/")
    cleaned = result(body, kinds=(), fields=fields)
    assert cleaned["structuredContent"] == {
        "rows": [{"ssn": FIELD, "a/b": FIELD}, {"ssn": FIELD}, {"other": 1}],
        "deep": {"a": {"k": FIELD}, "b": {"k": FIELD, "j": 1}},
        "list": ["a", FIELD, "c"],
        "": FIELD,
    }
    assert cleaned["rows"] == [{"ssn": 123}]


def test_a_field_does_not_live_on_in_the_text_beside_the_structure() -> None:
    structured = {"user": {"name": "Ada", "iban": "DE89370400440532013000", "pin": 1234}}
    body = {
        "structuredContent": structured,
        "content": [
            {"type": "text", "text": json.dumps(structured, indent=1)},
            {"type": "text", "text": "The account is DE89370400440532013000."},
            {"type": "text", "text": "{ no JSON, but DE89370400440532013000 }"},
        ],
    }
    cleaned = result(body, kinds=(), fields=("/user/iban", "/user/pin"))
    assert "DE89" not in json.dumps(cleaned)
    assert json.loads(cleaned["content"][0]["text"]) == {
        "user": {"name": "Ada", "iban": FIELD, "pin": FIELD}
    }
    assert cleaned["content"][1]["text"] == f"The account is {FIELD}."


def test_members_that_repeat_are_all_taken() -> None:
    body = b'{"structuredContent":{"a":1,"\\u0061":2,"b":3},"structuredContent":{"a":4}}'
    assert incoming(body, Redact(kinds=(), fields=("/a",))) == (
        b'{"structuredContent":{"a":"[redacted:field]","\\u0061":"[redacted:field]","b":3},'
        b'"structuredContent":{"a":"[redacted:field]"}}'
    )


# --- arguments -------------------------------------------------------------------------------


def test_arguments_are_changed_and_addresses_are_not() -> None:
    params = {
        "name": TOKEN,
        "arguments": {"a": TOKEN, "b": {"c": 1}},
        "inputResponses": {"q": {"content": {"x": TOKEN}}},
        "requestState": TOKEN,
        "_meta": {"progressToken": TOKEN},
    }
    assert outgoing(params, fields=("/b/c",)) == {
        **params,
        "arguments": {"a": HIDDEN, "b": {"c": FIELD}},
        "inputResponses": {"q": {"content": {"x": HIDDEN}}},
    }


def test_arguments_and_results_are_asked_for_apart() -> None:
    params = json.dumps({"arguments": {"a": TOKEN}}).encode()
    results = Redactor(lambda _: (Redact(),))
    arguments = Redactor(lambda _: (Redact(arguments=True, results=False),))
    assert results.outgoing(call(params)) is params
    assert TOKEN.encode() not in arguments.outgoing(call(params))
    assert arguments.incoming(call(), params) is params
    assert TOKEN.encode() not in results.incoming(call(), params)


def test_several_terms_add_up() -> None:
    body = {"a": TOKEN, "structuredContent": {"b": "x"}, "c": "number 42"}
    terms = (Redact(), Redact(kinds=(), fields=("/b",)), Redact(kinds=(), expressions=(r"\d+",)))
    assert json.loads(incoming(json.dumps(body).encode(), *terms)) == {
        "a": HIDDEN,
        "structuredContent": {"b": FIELD},
        "c": "number [redacted:expression]",
    }


def test_calls_that_no_rule_is_about_stay() -> None:
    redactor = Redactor(lambda asked: (Redact(),) if asked.server == "other" else ())
    body = json.dumps({"a": TOKEN}).encode()
    assert redactor.incoming(call(), body) is body
    assert redactor.outgoing(call(body)) is body


@pytest.mark.parametrize("body", [b'{"a":"\\x %s"}', b'{"a":"\\u12 %s"}'])
def test_what_is_no_json_fails_rather_than_passing_unread(body: bytes) -> None:
    with pytest.raises(ValueError, match="escape"):
        incoming(body % TOKEN.encode())


# --- anything ----------------------------------------------------------------------------------

texts = st.text(max_size=20) | st.sampled_from(
    [TOKEN, f"x {TOKEN}", "password=hunter", "password", '{"password":"hunter"}', "\\u0041\\/", "a"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=20,
)
terms = st.sampled_from(
    [
        Redact(),
        Redact(kinds=(), expressions=("[a-m]",)),
        Redact(fields=("/a", "/*/a", "/a/*", "/password")),
    ]
)


@given(values, terms, st.booleans(), st.sampled_from([None, 1]))
@example({"structuredContent": {"a": {"a": TOKEN}}}, Redact(fields=("/a", "/a/*")), True, None)
def test_the_outcome_is_json_that_differs_in_strings_only(
    value: Any, term: Redact, ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(
        {"structuredContent": value, "x": value}, ensure_ascii=ascii_only, indent=indent
    )
    raw = body.encode("utf-8", "surrogatepass")
    if not _is_utf8(raw):
        return
    cleaned = incoming(raw, term)
    json.loads(cleaned)
    assert TOKEN.encode() not in cleaned or not term.kinds
    if not term.fields:
        # The same tokens in the same order, but for what strings say.
        assert LITERAL.sub(b'""', cleaned) == LITERAL.sub(b'""', raw)
    assert json.loads(incoming(cleaned, term)) is not None
    if cleaned == raw:
        assert cleaned is raw


@given(values)
def test_spans_agree_with_a_decoder(value: Any) -> None:
    raw = json.dumps(value).encode()
    for step in ("a", "0", "*"):
        found = [json.loads(raw[start:end]) for start, end in resolve(raw, 0, (step,))]
        if isinstance(value, dict):
            expected = (
                list(value.values()) if step == "*" else [value[k] for k in value if k == step]
            )
        elif isinstance(value, list):
            expected = value if step == "*" else value[:1] if step == "0" else []
        else:
            expected = []
        assert found == expected


@given(st.binary(max_size=60), st.sampled_from([b"{", b"[", b'"', b'{"structuredContent":{"a":']))
def test_what_is_no_json_ends_all_the_same(junk: bytes, begin: bytes) -> None:
    with contextlib.suppress(ValueError):
        incoming(begin + junk, Redact(fields=("/a/*",), expressions=("x",)))


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
