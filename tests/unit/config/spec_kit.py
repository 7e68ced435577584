"""Specs of the custom resources as Hypothesis makes them, from the classes, key by key.

Of values that are right and of values that are not; what the reader and the schemas are known to
differ in is left out, and stands in resource_table.py.
"""

from __future__ import annotations

import enum
from typing import Any, Final, get_args

from hypothesis import strategies as st

from kars_router.config import marks
from kars_router.config.resources import SPECS
from kars_router.config.sandbox import EnvVar
from kars_router.config.shapes import fields_by_key, is_map, is_section, is_tuple
from kars_router.config.toolpolicy import Approval, RateLimit, Redact, Rule
from kars_router.config.toolpolicyspec import (
    BundleRef,
    PolicyApproval,
    PolicyProfile,
    ToolPolicySpec,
)

# Right ones and wrong ones.
VALUES: Final[dict[Any, tuple[list[Any], list[Any]]]] = {
    marks.Duration: (["5s", "1h30m", "2.5s", 5, "300ms"], ["0s", "", "5", "1s1h", -1, 0, True]),
    marks.Size: (["64KiB", "1.5 MB", 1024], ["64K", "", 1023, -1, True, [1]]),
    marks.Quantity: (["500m", "1.5", ".5", "1Gi", "1e3", 2], ["", ".", "1 Gi", "-1", -1, "e3"]),
    marks.Count: ([1, 1_000_000], [0, 1_000_001, "1", True]),
    marks.Priority: ([-1_000_000, 0, 7], [1_000_001, "0"]),
    marks.Name: (["a", "A_b.c-d", "9"], ["", "-a", "a b", 1, "x" * 129]),
    marks.ServerKey: (["a", "a-b", "9"], ["", "A", "a.b", "-a", "a-", "x" * 64]),
    marks.Label: (["a", "team-a"], ["", "Team", "a.b", "*"]),
    marks.LabelOrAny: (["a", "*"], ["", "**", "a*"]),
    marks.ObjectName: (["a", "a.b-c"], ["", "A", "a..b", "a_b", "x" * 254]),
    marks.Image: (["a", "r.example.com:5000/a/b:c@sha256:0"], ["", "a b", "\u00e9", "x" * 1025]),
    marks.Variable: (["A", "_a.b-c"], ["", "1A", "A=B", "A B"]),
    marks.EnvName: (["A", "_a1"], ["", "1A", "A-B", "A.B"]),
    marks.Glob: (["*", "a b?", "[a-z]*", "[!]]", "[]x]"], ["", " a", "a ", "[", "[]", "a\tb"]),
    marks.GlobOrAny: (["*", "", "a?"], [" a", "[a", "\x00"]),
    marks.Url: (
        ["http://a", "wss://a.b:1/c?d", "https://[::1]/", "HTTP://A."],
        ["", "a", "ftp://a", "http://", "http://a:0", "http://u@a", "http://a b", "http://a/#b"],
    ),
    marks.HttpUrl: (
        ["http://a", "https://a.b:1/c?d", "http://localhost:1", "http://127.0.0.1", "http://[::1]"],
        ["", "ws://a", "http://a:99999", "https://a\\b"],
    ),
    marks.Uri: (
        ["api://a", "urn:mcp", "https://a/?b"],
        ["", "a", "/a", "https://a/#b", "a b:c", "x:\u00e9"],
    ),
    marks.HeaderValue: (["a", "a b\tc"], ["", " a", "a\n", "\u00e9", "x" * 8193]),
    marks.Network: (["10.0.0.0/8", "fd00::/8", "10.0.0.1"], ["", "a.example", "10.0.0.0/8 "]),
    marks.Scope: (["a", "read:all", "https://a/.default"], ["", "a b", 'a"b', "\u00e9"]),
    marks.Pointer: (["/", "/a/*/b", "/~0~1"], ["", "a", "/~2"]),
    marks.Regex: (["a+", "(?i)b"], ["", 1]),
    marks.Sentence: (["Because.", " a "], ["", "  ", "x" * 4097]),
    marks.Json: ([{}, {"a": [1, None]}], []),
    str: (["", "a b\n\u00e9"], [1, True, []]),
    bool: ([True, False], ["true", 1]),
}
# In these a default that is written out has to be told from none, which only the reader does.
LEFT_OUT: Final = {
    (Approval, "via"),
    (Redact, "kinds"),
    (PolicyApproval, "threshold"),
    (PolicyProfile, "bundleRef"),
    (ToolPolicySpec, "commerce"),
}
INSTEAD: Final[dict[tuple[type, str], st.SearchStrategy[Any]]] = {
    (Approval, "via"): st.sampled_from([["operator"], [], ["nobody"], None]),
    (Redact, "kinds"): st.sampled_from([["jwt"], [], ["nothing"]]),
    (PolicyApproval, "mode"): st.sampled_from(["never", "always", "auto", "sometimes"]),
    (Rule, "arguments"): st.sampled_from([{}, {"type": "object"}, "x", [1], None]),
    (EnvVar, "valueFrom"): st.sampled_from([{}, {"fieldRef": {"fieldPath": "a"}}, "x", None]),
    (RateLimit, "window"): st.sampled_from(["5s", "2m", "x", None]),
}
KEYS: Final = {
    marks.HeaderName: ["X-A", "x-b", "x-a", "Accept", "Mcp-Name", "a b", ""],
    marks.Name: ["readOnlyHint"],
    str: ["a", "kars.azure.com/b"],
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    if kind in VALUES:
        right, wrong = VALUES[kind]
        # Mostly right ones: a spec with many keys would never be right otherwise.
        return st.sampled_from(right * 8 + wrong) if wrong else st.sampled_from(right)
    arguments = [each for each in get_args(kind) if each is not type(None)]
    if is_section(kind):
        return specs(kind)
    if is_map(kind):
        keys = st.sampled_from(KEYS[arguments[0]])
        return st.dictionaries(keys, values(arguments[1]), max_size=3)
    if is_tuple(kind):
        return st.lists(values(arguments[0]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return st.sampled_from([*([member.value for member in kind] * 4), "nothing"])
    assert len(arguments) == 1, kind
    inner = values(arguments[0])
    # A schema cannot say that null counts as no word.
    is_word = isinstance(arguments[0], type) and issubclass(arguments[0], enum.StrEnum)
    return inner if is_word else inner | st.none()


def specs(cls: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    if cls is BundleRef:
        names = ("registry", "repository", "digest", "artifactType")
        right = st.just(dict.fromkeys(names, "a"))
        return right | st.dictionaries(st.sampled_from(names), st.sampled_from(["a", ""]))
    keys: dict[str, st.SearchStrategy[Any]] = {}
    for key, each in fields_by_key(cls).items():
        if (cls, key) in INSTEAD:
            keys[key] = INSTEAD[cls, key]
        elif (cls, key) not in LEFT_OUT:
            keys[key] = values(each.type)
    return st.sets(st.sampled_from(sorted(keys)), max_size=4).flatmap(
        lambda chosen: st.fixed_dictionaries({key: keys[key] for key in sorted(chosen)})
    )


def spec_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    made = specs(SPECS[kind])
    if kind != "McpServer":
        return made
    url = values(marks.Url).map(lambda value: {"url": value})
    return st.builds(lambda url, spec: {**url, **spec}, url | st.just({}), made)
