"""Manifests as YAML: the same text always, and the same values for readers of either version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kars_router.config.manifests import write_manifests

WORDS = ["yes", "on", "y", "No", "OFF", "1:20", "190:20:30.15", "null", "~", "012", "1e3", "::/0"]


def read(text: str, version: str) -> list[Any]:
    reader: Any = YAML(typ="safe", pure=True)
    reader.version = version
    return list(reader.load_all(text))


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize("word", WORDS)
def test_a_string_stays_one(word: str, version: str) -> None:
    manifest = {"metadata": {"labels": {"a": word, word: "b"}}}
    assert read(write_manifests([manifest]), version) == [manifest]


def test_what_is_shared_is_written_twice() -> None:
    shared = {"app": "db"}
    manifests: list[dict[str, Any]] = [
        {"z": shared, "a": [shared]},
        {"a": "1\n2\n", "b": "x " * 200},
    ]
    text = write_manifests(manifests)
    assert "&" not in text
    assert text.startswith("---\nz:\n  app: db\na:\n- app: db\n---\na: |\n  1\n  2\n")
    assert read(text, "1.2") == manifests
    assert write_manifests([]) == ""


@given(
    st.dictionaries(
        st.text("aeinosyf01:-_.~ \n", max_size=5),
        st.one_of(st.text(max_size=8), st.text(" \n\tab#:|", max_size=8)),
        max_size=4,
    )
)
def test_what_is_written_is_read(manifest: dict[str, str]) -> None:
    text = write_manifests([manifest])
    assert text == write_manifests([manifest])
    assert read(text, "1.2") == [manifest]
