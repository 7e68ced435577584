from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.json_kit import JSON, members, read, write

from kars_router.wire import capabilities

TASKS = "io.modelcontextprotocol/tasks"
NAMES = st.sampled_from(
    ["sampling", "elicitation", "roots", "tools", "tasks", "experimental", "x/y", "tasksX"]
)
EXTENSIONS = st.dictionaries(st.sampled_from([TASKS, "a/b", "c/d"]), JSON, max_size=3)


@given(st.dictionaries(NAMES, JSON, max_size=5), st.none() | EXTENSIONS)
def test_everything_but_tasks_passes_as_it_was_written(
    declared: dict[str, str], extensions: dict[str, str] | None
) -> None:
    whole = declared if extensions is None else {**declared, "extensions": write(extensions)}
    data = write(whole, " ").encode()
    for offer in (capabilities.offered_upstream, capabilities.single_server):
        offered = offer(data)
        expected = {name: read(value) for name, value in declared.items() if name != "tasks"}
        kept = {name: value for name, value in (extensions or {}).items() if name != TASKS}
        if extensions is not None and (kept or not extensions):
            expected["extensions"] = read(write(kept))
        assert members(offered) == expected
        if "tasks" not in declared and TASKS not in (extensions or {}):
            assert offered is data


@pytest.mark.parametrize(
    "data",
    [
        rb'{"t\u0061sks":{},"sampling":{}}',
        rb'{"sampling":{},"extensions":{"io.modelcontextprotocol\/tasks":{}}}',
        rb'{"sampling":{},"extensions":{"io.modelcontextprotocol/\u0074asks":{}}}',
    ],
)
def test_tasks_are_found_however_they_are_spelled(data: bytes) -> None:
    assert capabilities.offered_upstream(data) == b'{"sampling":{}}'


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{"])
def test_what_is_no_declaration_offers_nothing(data: bytes) -> None:
    assert capabilities.offered_upstream(data) == b"{}"
    assert capabilities.single_server(data) == b"{}"
    assert capabilities.merge_servers([data]) == b"{}"
    assert not capabilities.has(data, "sampling")


def test_extensions_of_another_kind_are_not_ours() -> None:
    data = b'{"extensions":[1.0]}'
    assert capabilities.offered_upstream(data) is data


def test_many_servers_offer_what_one_of_them_does() -> None:
    first = (
        b'{"tools":{},"resources":{"subscribe":true,"listChanged":false},'
        b'"prompts":{"listChanged":false},"experimental":{}}'
    )
    second = b'{"tools":{"listChanged":true,"x":1.0},"logging":{},"tasks":{}}'
    third = (
        b'{"tools":{"listChanged":false,"x":2},"resources":{"subscribe":false},'
        b'"prompts":{"listChanged":true}}'
    )
    merged = capabilities.merge_servers([first, second, third])
    assert members(merged) == {
        "tools": ("object", [("listChanged", True), ("x", ("number", "1.0"))]),
        "prompts": ("object", [("listChanged", True)]),
        "resources": ("object", [("subscribe", True), ("listChanged", False)]),
        "logging": ("object", []),
    }


def test_extensions_are_merged() -> None:
    merged = capabilities.merge_servers(
        [
            json.dumps({"extensions": {TASKS: {}, "a/b": {"v": 1}}}).encode(),
            json.dumps({"extensions": {"a/b": {"v": 2}, "c/d": {}}, "completions": {}}).encode(),
            json.dumps({"extensions": {TASKS: {}}, "prompts": None, "tools": True}).encode(),
        ]
    )
    assert msgspec.json.decode(merged) == {
        "extensions": {"a/b": {"v": 1}, "c/d": {}},
        "completions": {},
    }


def test_no_server_offers_nothing() -> None:
    assert capabilities.merge_servers([]) == b"{}"


@pytest.mark.parametrize(
    ("path", "declared"),
    [
        (("sampling",), True),
        (("sampling", "tools"), True),
        (("sampling", "context"), False),
        (("roots",), False),
        (("tools", "listChanged"), False),
        (("elicitation",), False),
        (("experimental",), True),
        (("experimental", "x"), False),
    ],
)
def test_what_is_declared(path: tuple[str, ...], declared: bool) -> None:
    data = (
        b'{"sampling":{"tools":{}},"tools":{"listChanged":false},"elicitation":null,'
        b'"experimental":5}'
    )
    assert capabilities.has(data, *path) is declared


@pytest.mark.parametrize(
    ("data", "modes"),
    [
        (b"{}", set()),
        (b'{"elicitation":null}', set()),
        (b'{"elicitation":{}}', {"form"}),
        (b'{"elicitation":{"form":{}}}', {"form"}),
        (b'{"elicitation":{"form":null}}', {"form"}),
        (b'{"elicitation":{"url":{}}}', {"url"}),
        (b'{"elicitation":{"form":{},"url":{}}}', {"form", "url"}),
        (b'{"elicitation":{"applyDefaults":true}}', {"form"}),
    ],
)
def test_the_modes_of_elicitation(data: bytes, modes: set[str]) -> None:
    assert capabilities.elicitation_modes(data) == modes


@pytest.mark.parametrize(
    ("declared", "method", "params", "missing"),
    [
        (b"{}", "sampling/createMessage", b"{}", "sampling"),
        (b'{"sampling":{}}', "sampling/createMessage", b"{}", None),
        (b'{"sampling":{}}', "sampling/createMessage", b'{"tools":null}', None),
        (b'{"sampling":{}}', "sampling/createMessage", b'{"tools":[]}', "sampling.tools"),
        (b'{"sampling":{}}', "sampling/createMessage", b'{"toolChoice":{}}', "sampling.tools"),
        (b'{"sampling":{"tools":{}}}', "sampling/createMessage", b'{"tools":[]}', None),
        (b"{}", "sampling/createMessage", b'{"tools":[]}', "sampling"),
        (b"{}", "elicitation/create", b"", "elicitation"),
        (b"{}", "elicitation/create", b'{"mode":"url"}', "elicitation"),
        (b'{"elicitation":{}}', "elicitation/create", b"{}", None),
        (b'{"elicitation":{}}', "elicitation/create", b'{"mode":"form"}', None),
        (b'{"elicitation":{}}', "elicitation/create", b'{"mode":"url"}', "elicitation.url"),
        (b'{"elicitation":{"url":{}}}', "elicitation/create", b"{}", "elicitation.form"),
        (b'{"elicitation":{"url":{}}}', "elicitation/create", b'{"mode":"url"}', None),
        (b'{"elicitation":{}}', "elicitation/create", b'{"mode":"sms"}', "elicitation.sms"),
        (b'{"sampling":{},"elicitation":{"tools":{}}}', "sampling/createMessage", b"{}", None),
        (b'{"elicitation":{"sms":{}}}', "elicitation/create", b'{"mode":"sms"}', None),
        (b"{}", "roots/list", b"", "roots"),
        (b'{"roots":{}}', "roots/list", b"", None),
        (b"{}", "ping", b"", None),
        (b'{"sampling":{}}', "sampling/createMessage", b"[]", None),
    ],
)
def test_what_a_question_lacks(
    declared: bytes, method: str, params: bytes, missing: str | None
) -> None:
    assert capabilities.allows(declared, method, params) == missing


@pytest.mark.parametrize(
    ("capability", "data"),
    [
        ("sampling", {"sampling": {}}),
        ("elicitation.url", {"elicitation": {"url": {}}}),
    ],
)
def test_what_is_missing_is_named_as_capabilities(capability: str, data: dict[str, object]) -> None:
    assert msgspec.json.decode(capabilities.required(capability)) == {"requiredCapabilities": data}
