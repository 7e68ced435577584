"""The examples in docs/testing-kit.md are whole test modules: run as such."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kars_router.testing

PAGE = Path(__file__).parents[3] / "docs" / "testing-kit.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: str, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "trio_mode=true", "-W", "error", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_options_in_the_table_are_the_servers() -> None:
    table = TEXT.partition("| option |")[2].partition("\n\n")[0]
    names = [
        name
        for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    ]
    fields = kars_router.testing.HeartbeatServer.__attrs_attrs__
    assert sorted(names) == sorted(field.name for field in fields if field.init)


def test_public_names_are_sorted_and_documented() -> None:
    names = kars_router.testing.__all__
    assert names == sorted(names)
    for name in names:
        thing = getattr(kars_router.testing, name)
        if isinstance(thing, type) or inspect.isfunction(thing):
            assert thing.__doc__, name
