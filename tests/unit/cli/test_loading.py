from __future__ import annotations

import importlib
import sys
import weakref
from pathlib import Path

import pytest

from kars_router.cli.loading import passing


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with two modules that refer to each other, and one that begins like it."""
    (tmp_path / "brief").mkdir()
    (tmp_path / "brief" / "__init__.py").write_text("")
    (tmp_path / "brief" / "one.py").write_text(
        "from brief import two\nclass Big:\n    other = two\n"
    )
    (tmp_path / "brief" / "two.py").write_text("import brief.one\n")
    (tmp_path / "briefly.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("brief", "brief.one", "brief.two", "briefly")
    for name in names:
        # What is there in the end is undone as well.
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    return "brief"


def test_what_passes_is_let_go_of_and_can_be_loaded_anew(package: str) -> None:
    with passing(package):
        big = weakref.ref(importlib.import_module("brief.one").Big)
        importlib.import_module("briefly")
        assert big() is not None
    assert big() is None
    assert [name for name in sys.modules if name.startswith("brief")] == ["briefly"]
    assert importlib.import_module("brief.one").Big.other.__name__ == "brief.two"


def test_a_module_of_a_package_that_stays_is_let_go_of(package: str) -> None:
    kept = importlib.import_module(package)
    with passing("brief.one", "brief.two"):
        big = weakref.ref(importlib.import_module("brief.one").Big)
    assert big() is None
    assert sys.modules[package] is kept
    assert not hasattr(kept, "one")


def test_what_was_there_before_stays_whole(package: str) -> None:
    kept = importlib.import_module("brief.two")
    assert "brief.one" in sys.modules
    del sys.modules["brief.one"]
    with passing(package):
        more = importlib.import_module("brief.one")
    assert sys.modules["brief.two"] is kept
    assert sys.modules["brief.one"] is more


def test_what_passes_is_let_go_of_after_an_error_too(package: str, tmp_path: Path) -> None:
    (tmp_path / "brief" / "wrong.py").write_text("import brief.one\n1 / 0\n")
    with pytest.raises(ZeroDivisionError), passing(package):
        importlib.import_module("brief.wrong")
    assert package not in sys.modules


def test_nothing_need_be_loaded() -> None:
    with passing("brief"):
        pass
    assert "brief" not in sys.modules
