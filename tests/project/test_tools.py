"""The small checks in tools/: each says no when it should."""

from __future__ import annotations

import email.message
import subprocess
from pathlib import Path
from typing import Any

import check_wheel
import coverage_floor
import each_plugin
import licences
import module_budget
import pytest
import vulnerabilities


class TestCoverageFloor:
    def test_reached_and_never_lowered_is_fine(self) -> None:
        assert coverage_floor.complaint(90, 90.0, {"abc": 90, "def": 85}) is None

    def test_a_floor_below_an_earlier_commit_is_refused(self) -> None:
        said = coverage_floor.complaint(89, 95.0, {"abc": 85, "def": 90})
        assert said == "tools/coverage-floor says 89, but commit def had raised it to 90"

    def test_coverage_below_the_floor_is_refused(self) -> None:
        assert "below the floor of 90 %" in str(coverage_floor.complaint(90, 89.99, {}))

    def test_history_is_read_from_every_commit(self, tmp_path: Path) -> None:
        def git(*arguments: str) -> None:
            identity = ["-c", "user.name=n", "-c", "user.email=n@example.invalid"]
            subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

        (tmp_path / "tools").mkdir()
        git("init", "--quiet")
        for floor in ("80", "91", "85"):
            (tmp_path / "tools" / "coverage-floor").write_text(f"{floor}\n", encoding="utf-8")
            git("add", ".")
            git("commit", "--quiet", "--message", floor)
        assert sorted(coverage_floor.floors_in_history(tmp_path).values()) == [80, 85, 91]

    def test_without_history_there_is_nothing_to_compare(self, tmp_path: Path) -> None:
        assert coverage_floor.floors_in_history(tmp_path) == {}


class TestModuleBudget:
    @pytest.mark.parametrize(("lines", "status"), [(400, 0), (401, 0), (600, 0), (601, 1)])
    def test_limits(
        self, lines: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        package = tmp_path / "kars_router"
        package.mkdir()
        (package / "long.py").write_text("pass\n" * lines, encoding="utf-8")
        assert module_budget.main(tmp_path) == status
        assert ("kars_router/long.py" in capsys.readouterr().out) == (lines > 400)

    def test_an_empty_tree_is_a_mistake(self, tmp_path: Path) -> None:
        assert module_budget.main(tmp_path) == 1


class TestEachPlugin:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name in ("a", "b"):
            (tmp_path / "plugins" / name).mkdir(parents=True)
            (tmp_path / "plugins" / name / "pyproject.toml").touch()
        return tmp_path

    def test_runs_in_every_plugin_even_after_a_failure(
        self, root: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert each_plugin.main(["sh", "-c", "basename $PWD; [ $PWD != */a ]; exit 1"], root) == 1
        assert capfd.readouterr().err == "failed in: a, b\n"

    def test_what_stands_in_contrib_is_found_as_well(self, root: Path) -> None:
        (root / "contrib" / "c").mkdir(parents=True)
        (root / "contrib" / "c" / "pyproject.toml").touch()
        assert [each.name for each in each_plugin.plugins(root)] == ["c", "a", "b"]

    def test_all_is_well(self, root: Path) -> None:
        assert each_plugin.main(["test", "-f", "pyproject.toml"], root) == 0

    def test_no_plugin_at_all_is_a_mistake(self, tmp_path: Path) -> None:
        assert each_plugin.main(["true"], tmp_path) == 1


class TestLicences:
    @pytest.mark.parametrize(
        "expression",
        ["MIT", "MIT OR GPL-3.0-only", "MPL-2.0 AND (Apache-2.0 OR MIT)", "BSD-3-Clause AND MIT"],
    )
    def test_allowed(self, expression: str) -> None:
        assert licences.allowed(expression)

    @pytest.mark.parametrize(
        "expression",
        [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MIT AND (MIT OR AGPL-3.0-only)",
            "Proprietary",
        ],
    )
    def test_refused(self, expression: str) -> None:
        assert not licences.allowed(expression)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ([("License-Expression", "MIT"), ("License", "GPL")], "MIT"),
            ([("Classifier", "License :: OSI Approved :: MIT License"), ("License", "x")], "MIT"),
            ([("Classifier", "License :: OSI Approved"), ("License", "Apache 2.0")], "Apache-2.0"),
            ([("License", "MIT License\n\nCopyright somebody")], "MIT"),
            ([("Classifier", "Typing :: Typed")], ""),
        ],
    )
    def test_the_most_exact_declaration_counts(
        self, fields: list[tuple[str, str]], expected: str
    ) -> None:
        metadata: Any = email.message.Message()
        for name, value in fields:
            metadata[name] = value
        assert licences.declared(metadata) == expected


class TestVulnerabilities:
    def test_nothing_audited_is_a_skip_and_not_a_pass(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mirror = {"dependencies": [{"name": "trio", "skip_reason": "not found"}]}
        assert vulnerabilities.report(mirror) == 0
        assert capsys.readouterr().out.startswith("SKIPPED: vulnerability audit: ")

    def test_only_our_own_distributions_unknown_is_no_skip(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        audited = {
            "dependencies": [
                {"name": "kars-router", "skip_reason": "not found"},
                {"name": "trio", "version": "1", "vulns": []},
            ]
        }
        assert vulnerabilities.report(audited) == 0
        out = capsys.readouterr().out
        assert out == "vulnerability audit: 1 distributions audited, 0 vulnerabilities\n"

    def test_a_known_vulnerability_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        known = {"id": "CVE-1", "fix_versions": ["2"]}
        audited = {"dependencies": [{"name": "x", "version": "1", "vulns": [known]}]}
        assert vulnerabilities.report(audited) == 1
        assert "x 1: CVE-1, fixed in 2" in capsys.readouterr().out


class TestWheel:
    GOOD = ("kars_router/py.typed", "kars_router/cli/main.py", "kars_router-1.dist-info/METADATA")

    def test_what_belongs_in_is_fine(self) -> None:
        assert check_wheel.contents_problem(list(self.GOOD)) is None

    def test_a_missing_typing_marker_is_seen(self) -> None:
        assert check_wheel.contents_problem(list(self.GOOD[1:])) == (
            "the wheel lacks kars_router/py.typed"
        )

    def test_a_stray_directory_is_seen(self) -> None:
        assert check_wheel.contents_problem([*self.GOOD, "tests/test_x.py"]) == (
            "the wheel would install tests/test_x.py beside the package"
        )
