"""YAML as Kubernetes reads it."""

from __future__ import annotations

from typing import Any

import pytest

from kars_router.upgrade.manifests import ManifestError, documents, marked, read


def one(text: str) -> Any:
    (found,) = documents(f"v: {text}\n")
    assert isinstance(found, dict)
    return found["v"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("Off", False),
        ("n", False),
        ("TRUE", True),
        ("", None),
        ("~", None),
        ("null", None),
        ('"yes"', "yes"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("0644", 0o644),
        ("0o644", 0o644),
        ("0x1F", 31),
        ("0b101", 5),
        ("1_000", 1000),
        ("08", 8),
        ("00", 0),
        ("18446744073709551615", 2**64 - 1),
        ("18446744073709551616", 18446744073709551616.0),
        ("1.5", 1.5),
        ("2.0", 2),
        ("1e3", 1000),
        ("1e20", 1e20),
        (".5", 0.5),
        ("8080:80", "8080:80"),
        ("190:20:30", "190:20:30"),
        ("2001-12-14", "2001-12-14"),
        ("2001-12-14T21:59:43Z", "2001-12-14T21:59:43Z"),
        ("1.2.3", "1.2.3"),
        ("0.1.0", "0.1.0"),
        ("+", "+"),
        ("_1", "_1"),
        ("no way", "no way"),
        ("|\n  yes\n", "yes\n"),
        ("[a, 1]", ["a", 1]),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = one(text)
    assert (found, type(found)) == (value, type(value))


def test_keys_are_texts() -> None:
    assert documents("{1: a, yes: b, 1.5: c, d: e}") == [
        {"1": "a", "true": "b", "1.5": "c", "d": "e"}
    ]
    with pytest.raises(ManifestError, match="a key that is no text"):
        documents("{~: a}")


def test_anchors_and_merges() -> None:
    text = (
        "a: &a {x: 1, w: 2}\nb: {<<: *a, w: 3}\nc: {<<: [*a, {z: 4}]}\n"
        "d: &d [1]\ne: *d\nf: &f 1\ng: *f"
    )
    assert documents(text) == [
        {
            "a": {"x": 1, "w": 2},
            "b": {"x": 1, "w": 3},
            "c": {"x": 1, "w": 2, "z": 4},
            "d": [1],
            "e": [1],
            "f": 1,
            "g": 1,
        }
    ]
    with pytest.raises(ManifestError, match="merges something"):
        documents("a: {<<: 1}")


MANIFEST = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME}\n"


def test_objects_of_several_documents() -> None:
    text = f"---\n# Source: a\n{MANIFEST}---\n---\n{MANIFEST.replace('NAME', 'b')}"
    assert [each["metadata"]["name"] for each in read(text)] == ["NAME", "b"]
    assert read("") == []
    assert read("---\n# nothing\n") == []


def test_lists_are_their_items() -> None:
    text = (
        f"kind: List\napiVersion: v1\nitems:\n- {{kind: A, metadata: {{name: a}}}}\n---\n{MANIFEST}"
    )
    assert [each["kind"] for each in read(text)] == ["A", "ConfigMap"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "is no YAML"),
        ("a: *b", "is no YAML"),
        ("- a", "no object"),
        ("text", "no object"),
        ("kind: A", "without a kind or a name"),
        ("metadata: {name: a}", "without a kind or a name"),
        ("kind: A\nmetadata: a", "without a kind or a name"),
        (f"a: {'[' * 5000}", "is no YAML"),
    ],
)
def test_what_is_no_manifest(text: str, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        read(text)


def test_helms_marks() -> None:
    (manifest,) = read(MANIFEST)
    labels = {"app.kubernetes.io/managed-by": "somebody", "a": "b"}
    manifest["metadata"] |= {"labels": labels, "annotations": None}
    found = marked(manifest, "it", "there")
    assert found["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "Helm", "a": "b"}
    assert found["metadata"]["annotations"] == {
        "meta.helm.sh/release-name": "it",
        "meta.helm.sh/release-namespace": "there",
    }
    assert manifest["metadata"]["annotations"] is None
