"""MCP server with the tools, prompts and resources that the conformance suite asks for by name.

Runs in an environment of its own with `mcp` 2.x, never in the router's. Nothing here knows of
the router: the suite against this server alone is the control of the test beside it.

    python fixture_server.py PORT

Low-level API, because the suite looks at schemas field by field and the high-level one derives
them from signatures. Names and contents are the suite's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from fixture_data import (
    ELICITATION,
    ELICITATION_DEFAULTS,
    ELICITATION_ENUMS,
    EMPTY,
    JSON_SCHEMA_2020_12,
    PNG,
    WAV,
    one_string,
)
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPError

Context = Any
Content = types.TextContent | types.ImageContent | types.AudioContent | types.EmbeddedResource
ToolBody = Callable[[Context, dict[str, Any]], Awaitable[list[Content]]]

PAUSE = 0.05


def text(value: str) -> types.TextContent:
    return types.TextContent(text=value)


def image() -> types.ImageContent:
    return types.ImageContent(data=PNG, mime_type="image/png")


def embedded(uri: str, mime_type: str, value: str) -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=uri, mime_type=mime_type, text=value)
    return types.EmbeddedResource(resource=contents)


# --- tools ------------------------------------------------------------------------------------


async def simple_text(_: Context, __: dict[str, Any]) -> list[Content]:
    return [text("This is a simple text response for testing.")]


async def image_content(_: Context, __: dict[str, Any]) -> list[Content]:
    return [image()]


async def audio_content(_: Context, __: dict[str, Any]) -> list[Content]:
    return [types.AudioContent(data=WAV, mime_type="audio/wav")]


async def embedded_resource(_: Context, __: dict[str, Any]) -> list[Content]:
    uri = "test://embedded-resource"
    return [embedded(uri, "text/plain", "This is an embedded resource content.")]


async def multiple_content_types(_: Context, __: dict[str, Any]) -> list[Content]:
    value = json.dumps({"test": "data", "value": 123})
    resource = embedded("test://mixed-content-resource", "application/json", value)
    return [text("Multiple content types test:"), image(), resource]


async def with_logging(context: Context, _: dict[str, Any]) -> list[Content]:
    for message in ("execution started", "processing data", "execution completed"):
        await context.session.send_log_message(
            "info", f"Tool {message}", related_request_id=context.request_id
        )
        await anyio.sleep(PAUSE)
    return [text("Tool with logging executed.")]


async def with_progress(context: Context, _: dict[str, Any]) -> list[Content]:
    for progress in (0, 50, 100):
        await context.session.report_progress(progress, 100)
        await anyio.sleep(PAUSE)
    return [text("Tool with progress executed.")]


async def error_handling(_: Context, __: dict[str, Any]) -> list[Content]:
    raise ValueError("This tool intentionally returns an error for testing")


async def sampling(context: Context, arguments: dict[str, Any]) -> list[Content]:
    message = types.SamplingMessage(role="user", content=text(arguments["prompt"]))
    answer = await context.session.create_message(
        [message], max_tokens=100, related_request_id=context.request_id
    )
    return [text(f"LLM response: {getattr(answer.content, 'text', '')}")]


def eliciting(label: str, message: str | None, schema: dict[str, Any]) -> ToolBody:
    async def elicit(context: Context, arguments: dict[str, Any]) -> list[Content]:
        answer = await context.session.elicit_form(
            message or arguments["message"], schema, related_request_id=context.request_id
        )
        return [text(f"{label}: action={answer.action}, content={json.dumps(answer.content)}")]

    return elicit


async def reconnection(context: Context, _: dict[str, Any]) -> list[Content]:
    if context.close_sse_stream is not None:
        await context.close_sse_stream()
    await anyio.sleep(2 * PAUSE)
    return [text("Reconnection test completed.")]


DONE = "Elicitation completed"
TOOLS: dict[str, tuple[str, dict[str, Any], ToolBody]] = {
    "test_simple_text": ("Returns one text", EMPTY, simple_text),
    "test_image_content": ("Returns an image", EMPTY, image_content),
    "test_audio_content": ("Returns a sound", EMPTY, audio_content),
    "test_embedded_resource": ("Returns a resource", EMPTY, embedded_resource),
    "test_multiple_content_types": ("Returns three kinds", EMPTY, multiple_content_types),
    "test_tool_with_logging": ("Logs three times", EMPTY, with_logging),
    "test_tool_with_progress": ("Reports progress three times", EMPTY, with_progress),
    "test_error_handling": ("Always fails", EMPTY, error_handling),
    "test_sampling": ("Asks the client's model", one_string("prompt", "For the model"), sampling),
    "test_elicitation": (
        "Asks the user",
        one_string("message", "For the user"),
        eliciting("User response", None, ELICITATION),
    ),
    "test_elicitation_sep1034_defaults": (
        "Asks with defaults",
        EMPTY,
        eliciting(DONE, "Check these values", ELICITATION_DEFAULTS),
    ),
    "test_elicitation_sep1330_enums": (
        "Asks with every form of choice",
        EMPTY,
        eliciting(DONE, "Choose", ELICITATION_ENUMS),
    ),
    "test_reconnection": ("Closes its stream before it answers", EMPTY, reconnection),
    "json_schema_2020_12_tool": ("Has a rich schema", JSON_SCHEMA_2020_12, simple_text),
}


async def list_tools(_: Context, __: object) -> types.ListToolsResult:
    tools = [
        types.Tool(name=name, description=description, input_schema=schema)
        for name, (description, schema, _body) in TOOLS.items()
    ]
    return types.ListToolsResult(tools=tools)


async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    try:
        content = await TOOLS[params.name][2](context, params.arguments or {})
    except ValueError as error:
        return types.CallToolResult(content=[text(str(error))], is_error=True)
    return types.CallToolResult(content=content)


# --- resources --------------------------------------------------------------------------------

RESOURCES = {
    "test://static-text": ("Static text", "text/plain"),
    "test://static-binary": ("Static image", "image/png"),
    "test://watched-resource": ("One to subscribe to", "text/plain"),
}
TEMPLATE_PREFIX, TEMPLATE_SUFFIX = "test://template/", "/data"


async def list_resources(_: Context, __: object) -> types.ListResourcesResult:
    resources = [
        types.Resource(uri=uri, name=uri.partition("//")[2], description=about, mime_type=mime)
        for uri, (about, mime) in RESOURCES.items()
    ]
    return types.ListResourcesResult(resources=resources)


async def list_templates(_: Context, __: object) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(
        uri_template=f"{TEMPLATE_PREFIX}{{id}}{TEMPLATE_SUFFIX}",
        name="template",
        description="Data by id",
        mime_type="application/json",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(
    _: Context, params: types.ReadResourceRequestParams
) -> types.ReadResourceResult:
    uri = str(params.uri)
    contents: types.TextResourceContents | types.BlobResourceContents
    if uri == "test://static-binary":
        contents = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    elif uri in RESOURCES:
        value = f"This is the content of the {RESOURCES[uri][0].lower()} resource."
        contents = types.TextResourceContents(uri=uri, mime_type="text/plain", text=value)
    elif uri.startswith(TEMPLATE_PREFIX) and uri.endswith(TEMPLATE_SUFFIX):
        name = uri.removeprefix(TEMPLATE_PREFIX).removesuffix(TEMPLATE_SUFFIX)
        value = json.dumps({"id": name, "templateTest": True, "data": f"Data for ID: {name}"})
        contents = types.TextResourceContents(uri=uri, mime_type="application/json", text=value)
    else:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return types.ReadResourceResult(contents=[contents])


async def accept(_: Context, __: object) -> types.EmptyResult:
    """Subscribing and the log level: the suite looks at the answer, never at the effect."""
    return types.EmptyResult()


# --- prompts ----------------------------------------------------------------------------------

PROMPTS = {
    "test_simple_prompt": ("A prompt without arguments", ()),
    "test_prompt_with_arguments": ("A prompt with arguments", ("arg1", "arg2")),
    "test_prompt_with_embedded_resource": ("A prompt with a resource", ("resourceUri",)),
    "test_prompt_with_image": ("A prompt with an image", ()),
}


async def list_prompts(_: Context, __: object) -> types.ListPromptsResult:
    prompts = [
        types.Prompt(
            name=name,
            description=about,
            arguments=[
                types.PromptArgument(name=argument, description=argument, required=True)
                for argument in arguments
            ],
        )
        for name, (about, arguments) in PROMPTS.items()
    ]
    return types.ListPromptsResult(prompts=prompts)


async def get_prompt(_: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    given = params.arguments or {}
    content: list[Content]
    if params.name == "test_simple_prompt":
        content = [text("This is a simple prompt for testing.")]
    elif params.name == "test_prompt_with_arguments":
        content = [text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
    elif params.name == "test_prompt_with_embedded_resource":
        value = "Embedded resource content for testing."
        resource = embedded(given["resourceUri"], "text/plain", value)
        content = [resource, text("Please process the embedded resource above.")]
    elif params.name == "test_prompt_with_image":
        content = [image(), text("Please analyze the image above.")]
    else:
        raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    messages = [types.PromptMessage(role="user", content=part) for part in content]
    return types.GetPromptResult(messages=messages)


async def complete(_: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    words = ["paris", "park", "party", "test", "testing"]
    values = [word for word in words if word.startswith(params.argument.value)]
    completion = types.Completion(values=values, total=len(values), has_more=False)
    return types.CompleteResult(completion=completion)


# --- the server -------------------------------------------------------------------------------


class Events(EventStore):
    """Every event of every stream, kept for good: what lets a dropped stream be resumed."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: object) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send: EventCallback) -> str | None:
        last = int(last_event_id)
        if not 0 < last <= len(self._events):
            return None
        stream = self._events[last - 1][0]
        for number, (owner, message) in enumerate(self._events[last:], last + 1):
            if owner == stream and message is not None:
                await send(EventMessage(message, str(number)))
        return stream


def build() -> Server[Any]:
    return Server(
        "conformance-fixture",
        version="1",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=accept,
        on_unsubscribe_resource=accept,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
        on_set_logging_level=accept,
    )


def main() -> None:
    # 127.0.0.1 also switches on the SDK's own Host and Origin checks.
    app = build().streamable_http_app(host="127.0.0.1", event_store=Events(), retry_interval=500)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
