"""`kars version`: what a report of a mistake should say, without loading anything."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from kars_router._version import __version__
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option
from kars_router.plugins import GROUP
from kars_router.update.installation import find


@click.command(
    "version",
    epilog=examples(
        ("For people", "kars version"),
        ("For a program", "kars version -o json"),
    ),
)
@output_option
def command(*, output: Output) -> None:
    """Say which version this is, on which Python and platform.

    Also how it was installed, and which plugins are installed beside it. Nothing is loaded; `kars
    plugins` says whether they can be.
    """
    installation = find()
    plugins = [
        {"name": point.name, "version": point.dist.version if point.dist else ""}
        for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)
    ]
    about = {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "installedWith": installation.manner.value if installation else None,
    }
    emit({**about, "plugins": plugins}, output, lambda: _text(about, plugins))


def _text(about: dict[str, str | None], plugins: list[dict[str, str]]) -> str:
    rows = [
        ("kars", about["version"]),
        ("Python", f"{about['python']} ({about['implementation']})"),
        ("platform", about["platform"]),
        ("installed with", about["installedWith"] or "nothing: it runs from its source"),
        *((f"plugin {each['name']}", each["version"]) for each in plugins),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(clean(f"{name:{width}}  {value}") for name, value in rows)
