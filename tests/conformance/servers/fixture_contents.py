"""The resources, prompts and completions that the conformance suite asks for by name."""

from __future__ import annotations

import json

import mcp_types as types
from fixture_asking import Asker, Context, InputNeeded, form, in_handshake_era
from fixture_data import CONTEXT, PNG
from fixture_tools import SOMETIMES, Content, embedded, image, text
from mcp.shared.exceptions import MCPError

# --- resources --------------------------------------------------------------------------------

RESOURCES = {
    "test://static-text": ("Static text", "text/plain"),
    "test://static-binary": ("Static image", "image/png"),
    "test://watched-resource": ("One to subscribe to", "text/plain"),
}
# The stateless era has given this code up.
RESOURCE_NOT_FOUND = -32002
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
    context: Context, params: types.ReadResourceRequestParams
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
        code = RESOURCE_NOT_FOUND if in_handshake_era(context) else types.INVALID_PARAMS
        raise MCPError(code, "Resource not found", {"uri": uri})
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
    "test_input_required_result_prompt": ("A prompt that asks the user", ()),
}


async def list_prompts(_: Context, __: object) -> types.ListPromptsResult:
    listed = dict(PROMPTS)
    if "test_sometimes_prompt" in SOMETIMES:
        listed["test_sometimes_prompt"] = ("A prompt that is not always there", ())
    prompts = [
        types.Prompt(
            name=name,
            description=about,
            arguments=[
                types.PromptArgument(name=argument, description=argument, required=True)
                for argument in arguments
            ],
        )
        for name, (about, arguments) in listed.items()
    ]
    return types.ListPromptsResult(prompts=prompts)


async def get_prompt(
    context: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
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
    elif params.name == "test_input_required_result_prompt":
        question = form("What context should the prompt use?", CONTEXT)
        try:
            answers = await Asker(context, params)({"user_context": question})
        except InputNeeded as needed:
            return needed.result
        content = [text(json.dumps(answers))]
    else:
        raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    messages = [types.PromptMessage(role="user", content=part) for part in content]
    return types.GetPromptResult(messages=messages)


async def complete(_: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    words = ["paris", "park", "party", "test", "testing"]
    values = [word for word in words if word.startswith(params.argument.value)]
    completion = types.Completion(values=values, total=len(values), has_more=False)
    return types.CompleteResult(completion=completion)
