from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kars_router.wire.uris import unwrap, wrap

SERVER = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
# Lone halves of a pair, too: what Python can hold has to come back.
ANY = st.text(st.characters(codec=None), max_size=12)
PIECE = st.sampled_from(
    ["ui", "UI", ":", "://", "/", "+", "n.", "{", "}", "file", "a", "1", "-", "", "\n", " ", "K"]
)
URI = ANY | st.lists(PIECE, max_size=6).map("".join)


@given(SERVER, URI)
@example("pw", "")
@example("pw", ":")
@example("pw", "ui://")
@example("pw", "ui:")
@example("1pw", "ui:///")
@example("ui", "//x/y")
@example("a", "b+c:d")
def test_every_text_comes_back(server: str, uri: str) -> None:
    assert unwrap(wrap(server, uri)) == (server, uri)


@given(st.tuples(SERVER, URI), st.tuples(SERVER, URI))
@example(("a", "b+c:d"), ("a-b", "c:d"))
@example(("a", "a"), ("a", ":a"))
@example(("ui", "//a/b"), ("a", "ui://b"))
def test_two_resources_never_get_one_uri(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (wrap(*one) == wrap(*other)) == (one == other)


@given(SERVER, st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]{0,9}:", fullmatch=True), ANY)
def test_a_uri_stays_one(server: str, scheme: str, rest: str) -> None:
    wrapped = wrap(server, scheme + rest)
    assert re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", wrapped)
    assert wrapped.endswith(rest.removeprefix("//"))


@pytest.mark.parametrize(
    ("server", "uri", "wrapped"),
    [
        ("pw", "file:///a", "pw+file:///a"),
        ("pw", "FILE:///a", "pw+FILE:///a"),
        ("p-w", "git+ssh://h/p", "p-w+git+ssh://h/p"),
        ("3d", "file:///a", "n.3d+file:///a"),
        ("pw", "ui://app/x.html", "ui://pw/app/x.html"),
        ("3d", "Ui://app", "Ui://3d/app"),
        ("pw", "ui:app", "pw+ui:app"),
        ("pw", "notes/{id}", "pw+:notes/{id}"),
        ("pw", "note://{id}", "pw+note://{id}"),
        ("pw", "{scheme}://x", "pw+{scheme}://x"),
        ("pw", "{+uri}", "pw+{+uri}"),
        ("pw", "", "pw+:"),
    ],
)
def test_the_wrapping_is_part_of_the_contract(server: str, uri: str, wrapped: str) -> None:
    # Agents store URIs, so that they must not change from one release to the next.
    assert wrap(server, uri) == wrapped


@pytest.mark.parametrize(
    ("template", "expansion"),
    [
        ("{scheme}://x", "https://x"),
        ("{+uri}", "https://x/y?z"),
        ("note://{id}", "note://7"),
        ("ui://{app}/x", "ui://clock/x"),
        ("notes/{id}", "notes/7"),
    ],
)
def test_a_template_expands_to_what_its_expansion_is_wrapped_to(
    template: str, expansion: str
) -> None:
    name = re.search(r"\{.*\}", template)
    assert name
    before, after = template.split(name[0])
    value = expansion[len(before) : len(expansion) - len(after)]
    assert wrap("pw", template).replace(name[0], value) == wrap("pw", expansion)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "file:///a",
        "+file:///a",
        "pw+",
        "-pw+file:///a",
        "pw-+file:///a",
        "3d+file:///a",
        "n.pw+file:///a",
        "n.+file:///a",
        "p_w+file:///a",
        "p.w+file:///a",
        f"{'a' * 64}+file:///a",
        "ui://pw",
        "ui:///pw",
        "ui://p_w/x",
        "ui:pw/x",
        "\u212a+file:///a",
    ],
)
def test_what_is_not_wrapped(uri: str) -> None:
    assert unwrap(uri) is None


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("PW+FILE:///A", ("pw", "FILE:///A")),
        ("N.3D+x:y", ("3d", "x:y")),
        ("UI://PW/A", ("pw", "UI://A")),
        (f"{'a' * 63}+x:y", ("a" * 63, "x:y")),
        ("pw+expanded/to/no/uri", ("pw", "expanded/to/no/uri")),
    ],
)
def test_schemes_and_hosts_do_not_depend_on_case(uri: str, parts: tuple[str, str]) -> None:
    assert unwrap(uri) == parts
