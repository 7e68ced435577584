"""The template project becomes a plugin of one's own by the commands of its README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import each_plugin
from repository import ROOT

TEMPLATE = ROOT / "examples" / "plugin-template"


def test_a_copy_under_another_name_passes_its_tests(tmp_path: Path) -> None:
    readme = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    renaming = re.findall(r"^ *```sh\n(.*?)^ *```$", readme, re.MULTILINE | re.DOTALL)[0]
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(TEMPLATE, tmp_path / "examples" / TEMPLATE.name, ignore=ignored)
    subprocess.run(["bash", "-euc", renaming], cwd=tmp_path, check=True)
    made = tmp_path / "kars-plugin-quota"
    project = tomllib.loads((made / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["kars_router"] == {"quota": "kars_plugin_quota:plugin"}
    left = [path for path in made.rglob("*") if "template" in path.name]
    assert left == []
    # All but the one that needs it installed.
    command = [sys.executable, "-m", "pytest", "-q", "-k", "not entry_point"]
    done = subprocess.run(
        command,
        cwd=made,
        env={**os.environ, "PYTHONPATH": str(made)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_template_is_tested_where_plugins_are() -> None:
    assert TEMPLATE in each_plugin.plugins(ROOT)
