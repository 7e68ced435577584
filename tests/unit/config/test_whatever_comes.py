"""No data and no file, however wrong, raises anything but a ConfigError with printable lines."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.config import auth, mcpserver, sandbox, schema, toolpolicy, toolpolicyspec
from kars_router.config.load import build, load
from kars_router.config.marks import key_of
from kars_router.config.problems import InvalidConfigError
from kars_router.config.resources import API_VERSION, SPECS, structure_resource
from kars_router.errors import ConfigError


def keys() -> Iterator[str]:
    yield from ("name", "namespace", "labels", "generation", "finalizers")
    for module in (schema, auth, toolpolicy, mcpserver, sandbox, toolpolicyspec):
        for section in vars(module).values():
            if attrs.has(section) and section.__module__ == module.__name__:
                yield from (key_of(each.name) for each in attrs.fields(section))


NAMES = st.sampled_from([*keys(), "web"]) | st.text(max_size=10)
ODD_NAMES = NAMES | st.integers() | st.none() | st.booleans() | st.binary(max_size=2)
# Near enough to what is right to come far.
TEXTS = [
    *("http://h/", "https://h:1/", "ws://h", "http://[", "127.0.0.1:1", "unix:/a", "*", "["),
    *("5s", "4MiB", "sse", "stdio", "TOKEN", "..", "~", "\ud800", "x" * 1000),
    *("deny", "redact", "token-exchange", "session", "10.0.0.1/8", "/a", "[[a", "(?\a)"),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=3),
    st.sampled_from(TEXTS),
)


def nest(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=4) | st.dictionaries(ODD_NAMES, inner, max_size=6)


ANYTHING = st.recursive(LEAVES, nest, max_leaves=30)
SECTIONS = st.dictionaries(NAMES, st.dictionaries(NAMES, ANYTHING, max_size=8), max_size=3)
SHAPED = st.dictionaries(NAMES, ANYTHING | SECTIONS, max_size=8)
BYTES = st.binary(max_size=100) | st.text(max_size=100).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@given(
    raw=SHAPED | ANYTHING,
    upstreams=st.lists(st.text(max_size=12) | st.just("web=http://h/"), max_size=2),
    overrides=st.dictionaries(NAMES, ANYTHING, max_size=2),
)
def test_any_data(raw: object, upstreams: list[str], overrides: dict[str, object]) -> None:
    refusal: InvalidConfigError | None = None
    config: schema.Config | None = None
    try:
        config = build(raw, upstreams=upstreams, overrides=overrides, environ={"HOME": "/nowhere"})
    except InvalidConfigError as error:
        refusal = error
    if refusal is not None:
        assert refusal.problems
        assert refusal.problems == tuple(problem.line for problem in refusal.found)
        assert all(line.isprintable() for line in refusal.problems)
    elif config is not None:
        assert config.servers
        assert hash(config) == hash(attrs.evolve(config))


@given(kind=st.sampled_from(list(SPECS)), metadata=SHAPED | ANYTHING, spec=SHAPED | ANYTHING)
def test_any_resource(kind: str, metadata: object, spec: object) -> None:
    manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    refusal: InvalidConfigError | None = None
    try:
        resource = structure_resource(manifest)
    except InvalidConfigError as error:
        refusal = error
    else:
        assert hash(resource) == hash(structure_resource(manifest))
    if refusal is not None:
        assert refusal.problems
        assert all(line.isprintable() for line in (*refusal.problems, refusal.source))


@given(data=BYTES)
def test_any_file(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:  # never by chance a valid one: it has no server
        load(file, environ={})
    assert all(line.isprintable() for line in caught.value.problems)
