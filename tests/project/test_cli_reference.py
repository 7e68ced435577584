"""docs/cli.md says what the commands say, and nothing is left out."""

from __future__ import annotations

import re
from pathlib import Path

import cli_reference
import click
import pytest
from repository import files, relative

PAGE = cli_reference.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_code_says() -> None:
    assert cli_reference.page() == PAGE, "run `python tools/cli_reference.py`"


def test_every_variable_of_ours_is_on_the_page() -> None:
    ours = {"kars_router", "contrib/operator/kars_operator"}
    read = {
        name
        for path in files(".py")
        if relative(path).startswith(tuple(ours))
        for name in re.findall(r'"(KARS_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert len(read) > 5
    assert [name for name in sorted(read) if f"`{name}" not in PAGE] == []


def test_a_page_that_differs_is_told_of_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "cli.md"
    assert cli_reference.main(["--check"], page) == 1
    page.write_text("something else", encoding="utf-8")
    assert cli_reference.main(["--check"], page) == 1
    assert "cli.md is not what the commands say" in capsys.readouterr().out
    assert cli_reference.main([], page) == 0
    assert cli_reference.main(["--check"], page) == 0


def test_a_command_has_all_that_a_page_of_a_manual_has() -> None:
    @click.command("fetch", epilog="\b\nExamples:\n  # One\n  kars fetch a|b")
    @click.argument("what")
    @click.option(
        "-n",
        "--number",
        type=click.IntRange(1, 3),
        default=2,
        show_default=True,
        help="How many, at *most*.",
    )
    @click.option(
        "--fast/--slow",
        default=True,
        show_default=True,
        envvar="KARS_FAST",
        show_envvar=True,
        help="How.",
    )
    @click.option("--how", type=click.Choice(("a", "b")), required=True, help="Which.")
    def fetch() -> None:
        """Fetch it.

        As `a*b` does.

        \b
        Exit codes:
          0  it came
          1  it did not,
             or late
        """

    assert (
        "\n".join(cli_reference.sections(fetch, "kars fetch"))
        == r"""## kars fetch

Fetch it.

```text
kars fetch [OPTIONS] WHAT
```

As `a*b` does.

| option | meaning | default |
|---|---|---|
| `-n, --number INTEGER` | How many, at \*most\*. (`1<=x<=3`) | `2` |
| `--fast / --slow` | How. Also `KARS_FAST`. | `fast` |
| `--how a\|b` | Which. | required |

| exit code | meaning |
|---|---|
| 0 | it came |
| 1 | it did not, or late |

```sh
# One
kars fetch a|b
```
"""
    )
