"""How a plain value is read: one mark for each kind, one hook for each mark in `values`.

Knows neither YAML nor converters.
"""

from __future__ import annotations

from typing import Annotated, Final

# Metadata of a field that no file sets.
NO_KEY: Final = {"kars_key": False}
# Metadata of a field that has to be given, whatever its default is.
NEEDED: Final = {"kars_needed": True}

Duration = Annotated[float, "duration"]
Size = Annotated[int, "size"]
Count = Annotated[int, "count"]
Priority = Annotated[int, "priority"]
Name = Annotated[str, "name"]
ServerKey = Annotated[str, "server name"]
Glob = Annotated[str, "glob"]
GlobOrAny = Annotated[str, "glob or any"]
Regex = Annotated[str, "regular expression"]
Pointer = Annotated[str, "JSON pointer"]
Url = Annotated[str, "url"]
HttpUrl = Annotated[str, "http url"]
Uri = Annotated[str, "uri"]
EnvName = Annotated[str, "environment variable"]
HeaderName = Annotated[str, "header name"]
HeaderValue = Annotated[str, "header value"]
Secret = Annotated[str, "secret"]
Host = Annotated[str, "host"]
Network = Annotated[str, "network"]
Origin = Annotated[str, "origin"]
Scope = Annotated[str, "scope"]
Sentence = Annotated[str, "sentence"]
Command = Annotated[tuple[str, ...], "command"]
Json = Annotated[object, "json"]
# Of Kubernetes: a name, one label of it, a container's image and variables, an amount, a time.
ObjectName = Annotated[str, "object name"]
Label = Annotated[str, "label"]
LabelOrAny = Annotated[str, "label or any"]
Image = Annotated[str, "image"]
Variable = Annotated[str, "variable of a container"]
Quantity = Annotated[str, "quantity"]
Timestamp = Annotated[str, "timestamp"]
Generation = Annotated[int, "generation"]


def key_of(attribute: str) -> str:
    """The key of the file for an attribute: `allowed_tools` gives `allowedTools`."""
    head, *rest = attribute.split("_")
    return head + "".join(word.capitalize() for word in rest)
