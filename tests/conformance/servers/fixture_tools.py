"""The tools that the conformance suite calls by name. Names and contents are the suite's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from fixture_asking import (
    Asker,
    Context,
    InputNeeded,
    Question,
    form,
    in_handshake_era,
    roots,
    sample,
)
from fixture_data import (
    COLOUR,
    CONFIRMATION,
    ELICITATION,
    ELICITATION_DEFAULTS,
    ELICITATION_ENUMS,
    EMPTY,
    IN_HEADERS,
    JSON_SCHEMA_2020_12,
    NAME,
    PNG,
    WAV,
    one_string,
)
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError

Content = types.TextContent | types.ImageContent | types.AudioContent | types.EmbeddedResource
ToolBody = Callable[[Context, dict[str, Any], Asker], Awaitable[list[Content]]]

PAUSE = 0.05

BUS = InMemorySubscriptionBus()
# Names that are listed for now; what triggers a change adds or removes one.
SOMETIMES: set[str] = set()


def text(value: str) -> types.TextContent:
    return types.TextContent(text=value)


def image() -> types.ImageContent:
    return types.ImageContent(data=PNG, mime_type="image/png")


def embedded(uri: str, mime_type: str, value: str) -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=uri, mime_type=mime_type, text=value)
    return types.EmbeddedResource(resource=contents)


def returning(*content: Content) -> ToolBody:
    async def answer(_: Context, __: dict[str, Any], ___: Asker) -> list[Content]:
        return list(content)

    return answer


async def with_logging(context: Context, _: dict[str, Any], __: Asker) -> list[Content]:
    for message in ("execution started", "processing data", "execution completed"):
        await context.session.send_log_message(
            "info", f"Tool {message}", related_request_id=context.request_id
        )
        await anyio.sleep(PAUSE)
    return [text("Tool with logging executed.")]


async def with_progress(context: Context, _: dict[str, Any], __: Asker) -> list[Content]:
    for progress in (0, 50, 100):
        await context.session.report_progress(progress, 100)
        await anyio.sleep(PAUSE)
    return [text("Tool with progress executed.")]


async def error_handling(_: Context, __: dict[str, Any], ___: Asker) -> list[Content]:
    raise ValueError("This tool intentionally returns an error for testing")


async def reconnection(context: Context, _: dict[str, Any], __: Asker) -> list[Content]:
    if context.close_sse_stream is not None:
        await context.close_sse_stream()
    await anyio.sleep(2 * PAUSE)
    return [text("Reconnection test completed.")]


def changing(name: str, event: ServerEvent, notify: str) -> ToolBody:
    """Adds `name` to a list or removes it, and says so to those who listen, in either era."""

    async def change(context: Context, _: dict[str, Any], __: Asker) -> list[Content]:
        SOMETIMES.symmetric_difference_update({name})
        await BUS.publish(event)
        if in_handshake_era(context):
            await getattr(context.session, notify)()
        return [text("The list has changed.")]

    return change


# --- tools that ask ---------------------------------------------------------------------------


async def sampling(_: Context, arguments: dict[str, Any], ask: Asker) -> list[Content]:
    answers = await ask({"sample": sample(arguments.get("prompt", "Say something"))})
    return [text(f"LLM response: {answers['sample']['content'].get('text', '')}")]


def eliciting(label: str, message: str | None, schema: dict[str, Any]) -> ToolBody:
    async def elicit(_: Context, arguments: dict[str, Any], ask: Asker) -> list[Content]:
        answer = (await ask({"form": form(message or arguments["message"], schema)}))["form"]
        content = json.dumps(answer.get("content"))
        return [text(f"{label}: action={answer['action']}, content={content}")]

    return elicit


def asking(questions: dict[str, Question], label: str = "", *, remember: bool = False) -> ToolBody:
    """Asks all of `questions` at once and returns the answers."""

    async def ask_all(_: Context, __: dict[str, Any], ask: Asker) -> list[Content]:
        answers = await ask(questions, remember=remember)
        return [text(label + json.dumps(answers))]

    return ask_all


async def multi_round(_: Context, __: dict[str, Any], ask: Asker) -> list[Content]:
    first = await ask({"step1": form("Step 1: What is your name?", NAME)}, remember=True)
    question = form("Step 2: What is your favorite color?", COLOUR)
    second = await ask({"step2": question}, remember=True)
    return [text(json.dumps({**first, **second}))]


async def capabilities(_: Context, __: dict[str, Any], ask: Asker) -> list[Content]:
    """Asks only what this client can be asked."""
    wanted = {"question": sample("Say something"), "user_name": form("What is your name?", NAME)}
    possible = {name: question for name, question in wanted.items() if ask.may_ask(question)}
    return [text(json.dumps(await ask(possible)))]


EVERY_KIND = {
    "user_name": form("What is your name?", NAME),
    "greeting": sample("Generate a greeting"),
    "client_roots": roots(),
}
CONFIRM = {"confirm": form("Please confirm", CONFIRMATION)}
DONE = "Elicitation completed"
MIXED = json.dumps({"test": "data", "value": 123})
SIMPLE = returning(text("This is a simple text response for testing."))

Tool = tuple[str, dict[str, Any], ToolBody]
TOOLS: dict[str, Tool] = {
    "test_simple_text": ("Returns one text", EMPTY, SIMPLE),
    "test_image_content": ("Returns an image", EMPTY, returning(image())),
    "test_audio_content": (
        "Returns a sound",
        EMPTY,
        returning(types.AudioContent(data=WAV, mime_type="audio/wav")),
    ),
    "test_embedded_resource": (
        "Returns a resource",
        EMPTY,
        returning(
            embedded(
                "test://embedded-resource", "text/plain", "This is an embedded resource content."
            )
        ),
    ),
    "test_multiple_content_types": (
        "Returns three kinds",
        EMPTY,
        returning(
            text("Multiple content types test:"),
            image(),
            embedded("test://mixed-content-resource", "application/json", MIXED),
        ),
    ),
    "test_tool_with_logging": ("Logs three times", EMPTY, with_logging),
    "test_logging_tool": ("Logs three times", EMPTY, with_logging),
    "test_tool_with_progress": ("Reports progress three times", EMPTY, with_progress),
    "test_error_handling": ("Always fails", EMPTY, error_handling),
    "test_reconnection": ("Closes its stream before it answers", EMPTY, reconnection),
    "json_schema_2020_12_tool": ("Has a rich schema", JSON_SCHEMA_2020_12, SIMPLE),
    "test_x_mcp_header": ("Has arguments that headers repeat", IN_HEADERS, SIMPLE),
    "test_trigger_tool_change": (
        "Changes the list of tools",
        EMPTY,
        changing("test_sometimes", ToolsListChanged(), "send_tool_list_changed"),
    ),
    "test_trigger_prompt_change": (
        "Changes the list of prompts",
        EMPTY,
        changing("test_sometimes_prompt", PromptsListChanged(), "send_prompt_list_changed"),
    ),
    "test_sampling": ("Asks the client's model", one_string("prompt", "For the model"), sampling),
    "test_missing_capability": ("Needs the client's model", EMPTY, sampling),
    "test_elicitation": (
        "Asks the user",
        one_string("message", "For the user"),
        eliciting("User response", None, ELICITATION),
    ),
    "test_streaming_elicitation": (
        "Asks the user, and nothing else",
        EMPTY,
        eliciting(DONE, "What is your name?", NAME),
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
    "test_input_required_result_elicitation": (
        "Asks for a name",
        EMPTY,
        asking({"user_name": form("What is your name?", NAME)}, "Hello! "),
    ),
    "test_input_required_result_sampling": (
        "Asks the model for a capital",
        EMPTY,
        asking({"capital_question": sample("What is the capital of France?")}),
    ),
    "test_input_required_result_list_roots": (
        "Asks for the roots",
        EMPTY,
        asking({"client_roots": roots()}),
    ),
    "test_input_required_result_request_state": (
        "Asks and wants its state back",
        EMPTY,
        asking(CONFIRM, "state-ok ", remember=True),
    ),
    "test_input_required_result_tampered_state": (
        "Asks and wants its own state back",
        EMPTY,
        asking(CONFIRM, remember=True),
    ),
    "test_input_required_result_multiple_inputs": (
        "Asks everything at once",
        EMPTY,
        asking(EVERY_KIND, remember=True),
    ),
    "test_input_required_result_multi_round": ("Asks twice", EMPTY, multi_round),
    "test_input_required_result_capabilities": ("Asks what it may", EMPTY, capabilities),
}


async def list_tools(_: Context, __: object) -> types.ListToolsResult:
    listed = {name: (about, schema) for name, (about, schema, _body) in TOOLS.items()}
    if "test_sometimes" in SOMETIMES:
        listed["test_sometimes"] = ("Is not always there", EMPTY)
    tools = [
        types.Tool(name=name, description=about, input_schema=schema)
        for name, (about, schema) in listed.items()
    ]
    return types.ListToolsResult(tools=tools)


async def call_tool(
    context: Context, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    body = TOOLS[params.name][2]
    try:
        content = await body(context, params.arguments or {}, Asker(context, params))
    except InputNeeded as needed:
        return needed.result
    except ValueError as error:
        return types.CallToolResult(content=[text(str(error))], is_error=True)
    return types.CallToolResult(content=content)
