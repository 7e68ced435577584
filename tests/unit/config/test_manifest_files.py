"""Manifests in files and directories, and a sentence for everything else that is there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from kars_router.config.manifest_files import Manifest, Places, read_documents
from kars_router.errors import UserError


def written(directory: Path, name: str, text: str) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return file


def pod(name: str = "a", **metadata: str) -> Manifest:
    return {"kind": "Pod", "metadata": {"name": name, **metadata}}


def test_files_are_read_in_their_order_and_those_of_directories_by_name(tmp_path: Path) -> None:
    last = written(tmp_path, "x/last.json", '{"a": 1}')
    for name in ("b.yml", "a.yaml", "deep/c.json", "notes.txt", "yaml"):
        written(tmp_path, f"all/{name}", f"name: {name}\n---\n---\nname: again\n")
    all_of_it = tmp_path / "all"
    found = [(str(file.relative_to(all_of_it)), each) for file, each in read_documents([all_of_it])]
    names = ["a.yaml", "b.yml", "deep/c.json"]
    assert found == [(name, {"name": said}) for name in names for said in (name, "again")]
    assert list(read_documents([last, last])) == [(last, {"a": 1})] * 2


def test_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a: 1\n---\nb: 2\n")))
    stdin = Path("stdin")
    assert list(read_documents([Path("-")])) == [(stdin, {"a": 1}), (stdin, {"b": 2})]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    with pytest.raises(UserError, match=r"^stdin: is no YAML: line 1"):
        list(read_documents([Path("-")]))


def test_what_is_in_a_list_comes_one_by_one(tmp_path: Path) -> None:
    text = "{kind: List, items: [{a: 1}, {kind: List, items: [{a: 2}]}, {kind: List}]}"
    file = written(tmp_path, "a.yaml", text)
    assert list(read_documents([file])) == [(file, {"a": 1}), (file, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no YAML: line 1, column 2: expected the node content, but found"),
        ("a: 1\na: 2", "is no YAML: line 2, column 1: found duplicate key"),
        ("[" * 3_000, "is no YAML: "),
        ("\udcff", "is no UTF-8 text"),
        ("- a", "no mapping of keys"),
        ("{kind: List, items: 5}", "a List whose items are no list"),
        ("{kind: List, items: [5]}", "no mapping of keys"),
    ],
)
def test_what_is_something_else_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, "a.yaml", text)
    with pytest.raises(UserError) as caught:
        list(read_documents([tmp_path]))
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such file or directory"):
        list(read_documents([tmp_path / "nowhere"]))


def test_a_place_is_taken_once() -> None:
    places, file = Places("here"), Path("a.yaml")
    key, placed = places.take(pod(), file)
    assert key == ("Pod", "here", "a")
    assert placed == pod(namespace="here")
    assert places.take(pod(namespace="there"), file)[0] == ("Pod", "there", "a")
    with pytest.raises(UserError, match=r"a\.yaml: Pod here/a is there twice; keep one"):
        places.take(pod(namespace="here"), file)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({}, "without a kind"),
        ({"kind": 5}, "without a kind"),
        ({"kind": "Pod"}, "a Pod has no metadata.name"),
        ({"kind": "Pod", "metadata": ["name"]}, "a Pod has no metadata.name"),
    ],
)
def test_what_has_no_place_is_told(manifest: Manifest, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Places("here").take(manifest, Path("a.yaml"))
