"""Writing manifests as YAML that every reader takes alike.

Owns what has to be quoted. Must not know what any manifest means.

Sources: YAML 1.1 types "bool" and "int", which kubectl still reads by; YAML 1.2.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

# Words and numbers with colons are strings in YAML 1.2 only.
_READ_ELSEWHERE: Final = re.compile(
    r"(?i:y|yes|n|no|on|off)\Z|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?\Z"
)


def write_manifests(manifests: Iterable[Mapping[str, Any]]) -> str:
    """Manifests as YAML documents; the same ones always give the same text."""
    from ruamel.yaml import YAML

    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.explicit_start = True
    writer.width = 4096  # a long sentence stays one line, so that lines can be compared
    # Manifests share parts, and YAML would write the second one as a reference to the first.
    writer.representer.ignore_aliases = lambda _: True
    writer.representer.add_representer(str, _text)
    text = io.StringIO()
    for each in manifests:
        writer.dump(each, text)
    return text.getvalue()


def _text(representer: Any, value: str) -> Any:
    style = None
    if not value.replace("\n", "").isprintable():
        style = '"'
    elif "\n" in value:
        style = "|"  # a file in a ConfigMap is read as it stands there
    elif _READ_ELSEWHERE.match(value):
        style = "'"
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style=style)
