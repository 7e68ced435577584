from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.wire.json_kit import JSON, read, write

from kars_router.wire import content, uris


def wrap(uri: str) -> str:
    return uris.wrap("s", uri)


def unwrap(uri: str) -> str:
    found = uris.unwrap(uri)
    assert found is not None
    return found[1]


def prefix(name: str) -> str:
    return f"s__{name}"


def unprefix(name: str) -> str:
    assert name.startswith("s__")
    return name.removeprefix("s__")


LINK = '{"type":"resource_link","uri":%s,"name":"n","size":1.0}'
EMBEDDED = '{"type":"resource","resource":{"uri":%s,"blob":"AA==","_meta":{"uri":"x:y"}}}'
TEXT = '{"type":"text","text":"uri: x:y","annotations":{"priority":0.50}}'
IMAGE = '{"type":"image","data":"iVBORw0=","mimeType":"image/png","uri":"x:y"}'
UNKNOWN = '{"type":"hologram","uri":"x:y","resource":{"uri":"x:y"},"depth":1E400}'
TOOL_USE = '{"type":"tool_use","id":"1","name":"t","input":{"uri":"x:y"}}'
TOOL_RESULT = (
    f'{{"type":"tool_result","toolUseId":"1","content":[{LINK},{EMBEDDED % "%s"},{TEXT}]}}'
)
SAMPLING = (
    f'{{"maxTokens":1.0,"messages":[{{"role":"user","content":[{TOOL_RESULT},{TOOL_USE}]}}]}}'
)

TOOL = (
    f'{{"content":[{TEXT},{LINK},{EMBEDDED},{IMAGE},{UNKNOWN}],'
    '"structuredContent":{"uri":"x:y","n":1e400},"_meta":{"uri":"x:y"}}'
)
QUESTIONS = (
    f'{{"resultType":"input_required","requestState":"uri","inputRequests":{{'
    f'"a":{{"method":"sampling/createMessage","params":{SAMPLING}}},'
    '"b":{"method":"elicitation/create","params":{"uri":"x:y","url":"https://x"}}}}'
)
# Each %s is a place where a URI stands; the name says what the message is.
RESULTS = [
    ("resources/list", '{"resources":[{"uri":%s,"size":1.0},{"uri":%s},{"x":1}],"nextCursor":"c"}'),
    ("resources/templates/list", '{"resourceTemplates":[{"uriTemplate":%s,"uri":"x:y"}]}'),
    ("resources/read", '{"contents":[{"uri":%s,"text":"uri"},{"uri":%s,"blob":""}],"ttlMs":1.0}'),
    ("tools/call", TOOL),
    ("prompts/get", f'{{"description":"uri","messages":[{{"role":"user","content":{LINK}}}]}}'),
    ("prompts/get", f'{{"messages":[{{"content":[{EMBEDDED},{TEXT}]}},{{"content":{IMAGE}}}]}}'),
    ("tools/call", QUESTIONS),
]
PARAMS = [
    ("resources/read", '{"uri":%s,"_meta":{"progressToken":1.0}}'),
    ("resources/subscribe", '{"uri":%s}'),
    ("resources/unsubscribe", '{"uri":%s}'),
    ("notifications/resources/updated", '{"uri":%s,"title":"uri"}'),
    ("completion/complete", '{"ref":{"type":"ref/resource","uri":%s},"argument":{"name":"uri"}}'),
    ("sampling/createMessage", SAMPLING),
    ("sampling/createMessage", f'{{"messages":[{{"content":{EMBEDDED}}}],"uri":"x:y"}}'),
]
DEFINITION = (
    '{"name":"t","_meta":{"ui":{"resourceUri":%s,"visibility":["app"]},"ui/resourceUri":%s,'
    '"openai/outputTemplate":%s,"n":1.0},"inputSchema":{"properties":{"resourceUri":{}}}}'
)
OTHER = st.sampled_from(["file:///a", "note://{id}", "ui://app/x", "", "\u4e16", "a b", "x+y:z"])


def filled(text: str, uri: str) -> bytes:
    count = text.count("%s")
    assert count
    return (text % ((json.dumps(uri),) * count)).encode()


@pytest.mark.parametrize(("method", "text"), RESULTS)
@given(uri=OTHER)
def test_uris_in_results(method: str, text: str, uri: str) -> None:
    before = filled(text, uri)
    after = content.result(method, before, wrap)
    assert read(after) == read(filled(text, wrap(uri)))
    assert read(content.result(method, after, unwrap)) == read(before)


@pytest.mark.parametrize(("method", "text"), PARAMS)
@given(uri=OTHER)
def test_uris_in_params(method: str, text: str, uri: str) -> None:
    before = filled(text, wrap(uri))
    after = content.params(method, before, unwrap)
    assert read(after) == read(filled(text, uri))
    assert read(content.params(method, after, wrap)) == read(before)


@given(OTHER)
def test_uris_of_user_interfaces(uri: str) -> None:
    before = filled(DEFINITION, uri)
    after = content.tool_definition(before, wrap)
    assert read(after) == read(filled(DEFINITION, wrap(uri)))
    assert read(content.tool_definition(after, unwrap)) == read(before)


@pytest.mark.parametrize(
    ("kind", "method", "text"),
    [
        (content.result, "prompts/list", '{"prompts":[{"name":%s,"arguments":[{"name":"a"}]}]}'),
        (content.params, "prompts/get", '{"name":%s,"arguments":{"name":"a","n":1.0}}'),
        (
            content.params,
            "completion/complete",
            '{"ref":{"type":"ref/prompt","name":%s,"uri":"x:y"},"argument":{"name":"a"}}',
        ),
        (content.params, "completion/complete", '{"ref":{"type":"ref/prompt","name":%s}}'),
    ],
)
def test_names_of_prompts(kind: Any, method: str, text: str) -> None:
    before = filled(text, "greet")
    after = kind(method, before, wrap, prefix)
    assert read(after) == read(filled(text, "s__greet"))
    assert read(kind(method, after, unwrap, unprefix)) == read(before)
    assert kind(method, before, wrap) is before


@pytest.mark.parametrize(("method", "text"), [*RESULTS, *PARAMS])
def test_only_in_messages_that_mean_it(method: str, text: str) -> None:
    data = filled(text, "file:///a")
    for kind in (content.result, content.params):
        for other in ("tools/list", "roots/list", "notifications/message", "tasks/get", ""):
            assert kind(other, data, wrap, prefix) is data


@pytest.mark.parametrize(("method", "text"), [*RESULTS, *PARAMS])
def test_where_nothing_changes_the_same_bytes_come_back(method: str, text: str) -> None:
    data = filled(text, "file:///a")
    assert content.result(method, data, content.same) is data
    assert content.params(method, data, content.same) is data
    assert content.tool_definition(data, content.same) is data


METHODS = sorted({method for method, _ in [*RESULTS, *PARAMS, ("prompts/list", "")]})
SHAPES = ["content", "messages", "contents", "resources", "prompts", "ref", "uri", "name"]


@given(st.sampled_from(METHODS), JSON | st.dictionaries(st.sampled_from(SHAPES), JSON).map(write))
def test_whatever_comes_only_texts_change(method: str, text: str) -> None:
    def mark(value: str) -> str:
        return value + "\u2028"

    def unmarked(value: Any) -> Any:
        if isinstance(value, str):
            return value.removesuffix("\u2028")
        if isinstance(value, list | tuple):
            return [unmarked(inner) for inner in value]
        return value

    for kind in (content.result, content.params):
        after = kind(method, text.encode(), mark, mark)
        assert unmarked(read(after)) == unmarked(read(text))
    assert unmarked(read(content.tool_definition(text.encode(), mark))) == unmarked(read(text))


ODD = b'[5,null,"uri",[],{},{"uri":"a:b"},{"type":5,"uri":"a:b"},{"type":"resource_link","uri":5}]'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'"uri"',
        b"[]",
        b'{"content":{"uri":1}}',
        b'{"content":%b}' % ODD,
        b'{"messages":[5,{"content":%b},{"content":"uri"}],"ref":5}' % ODD,
        b'{"inputRequests":{"a":5,"b":{"method":5,"params":{"uri":"a:b"}}},"ref":{"uri":"a:b"}}',
    ],
)
def test_what_is_not_of_the_shape_is_left_alone(data: bytes) -> None:
    for method in METHODS:
        assert content.result(method, data, wrap, prefix) is data
        assert content.params(method, data, wrap, prefix) is data
    assert content.tool_definition(data, wrap) is data


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        (
            "tools/call",
            rb'{"content":[{"type":"resource\u005flink","\u0075ri":"a:b"}]}',
            b'{"content":[{"type":"resource\\u005flink","uri":"s+a:b"}]}',
        ),
        (
            "resources/list",
            rb'{"resources":[{"uri":"a:\/\/b"}]}',
            b'{"resources":[{"uri":"s+a://b"}]}',
        ),
    ],
)
def test_escapes_hide_nothing(method: str, data: bytes, expected: bytes) -> None:
    assert content.result(method, data, wrap) == expected


def test_each_spelling_of_a_user_interface_is_enough() -> None:
    for spelling in ("openai/outputTemplate", "ui/resourceUri"):
        data = json.dumps({"_meta": {spelling: "ui://a"}}).encode()
        changed = json.loads(content.tool_definition(data, wrap))
        assert changed == {"_meta": {spelling: "ui://s/a"}}


def test_escapes_hide_nothing_in_definitions() -> None:
    for key in (rb"ui\/resourceUri", rb"ui/\u0072esourceUri"):
        data = b'{"_meta":{"%b":"ui://a"}}' % key
        assert content.tool_definition(data, wrap) == b'{"_meta":{"ui/resourceUri":"ui://s/a"}}'


def test_a_result_of_a_tool_is_not_searched_for_further_ones() -> None:
    nested = b'{"messages":[{"content":{"type":"tool_result","content":[%b]}}]}'
    inner = b'{"type":"tool_result","content":[{"type":"resource_link","uri":"a:b"}]}'
    data = nested % inner
    assert content.params("sampling/createMessage", data, wrap) is data


def test_results_of_tools_are_no_content_of_a_tool() -> None:
    data = b'{"content":[{"type":"tool_result","content":[{"type":"resource_link","uri":"a:b"}]}]}'
    assert content.result("tools/call", data, wrap) is data
