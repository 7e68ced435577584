"""What single values look like, in the syntax of expressions that Go and ECMAScript share.

Each is for a whole value, without anchors; there is no look-ahead, and no count beyond 1000.
`values` reads with some of them; for the others the parsers in `units`, `addresses` and `globs` are
the judges, and where these know more than a pattern can say, it allows more.
"""

from __future__ import annotations

from typing import Final

_NUMBER: Final = "[0-9]{1,12}([.][0-9]{1,9})?"

LABEL: Final = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
OBJECT_NAME: Final = "[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
NAME: Final = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
ENV_NAME: Final = "[A-Za-z_][A-Za-z0-9_]{0,254}"
VARIABLE: Final = "[A-Za-z_.-][A-Za-z0-9_.-]{0,254}"
IMAGE: Final = "[!-~]+"
QUANTITY: Final = (
    "([0-9]{1,15}([.][0-9]{0,9})?|[.][0-9]{1,9})"
    "(m|u|n|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,2})?"
)
SCOPE: Final = r"[!#-\[\]-~]{1,256}"
URI: Final = '[A-Za-z][A-Za-z0-9+.-]*:[!"$-~]+'
POINTER: Final = "(/([^/~]|~[01])*)+"
HEADER_NAME: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}"
HEADER_VALUE: Final = "[!-~]([ \t!-~]*[!-~])?"
NETWORK: Final = "[0-9a-fA-F.:]{2,45}(/[0-9]{1,3})?"
DURATION: Final = f"({_NUMBER}d)?({_NUMBER}h)?({_NUMBER}m)?({_NUMBER}s)?({_NUMBER}ms)?"
SIZE: Final = f"{_NUMBER} ?(B|kB|MB|GB|KiB|MiB|GiB)"
# A bracket needs its other half; what comes first in it stands for itself.
_IN_GLOB: Final = r"[^\[\p{C}\p{Z}]|\[(![^\p{C}\p{Z}]|[^!\p{C}\p{Z}])[^\]\p{C}]*\]"
GLOB: Final = f"({_IN_GLOB})(({_IN_GLOB}| )*({_IN_GLOB}))?"
_PORT: Final = (
    "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)


def url(schemes: str) -> str:
    """What a URL looks like.

    Args:
        schemes: its schemes, as alternatives of an expression.
    """
    host = r"(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]\\]+)"
    return rf"({schemes})://{host}(:{_PORT})?([/?][^\s#\\]*)?"
