"""`kars check`: is this configuration valid, and what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kars_router.cli.errors import FOUND, UNDETERMINED
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option
from kars_router.config.advice import advice
from kars_router.config.converter import to_plain
from kars_router.config.load import DEFAULT_FILE, default_path, load
from kars_router.config.problems import InvalidConfigError
from kars_router.errors import ConfigError, UserError

if TYPE_CHECKING:
    from kars_router.config.schema import Config


@click.command(
    "check",
    epilog=examples(
        ("Is ./kars.yaml valid?", "kars check"),
        ("Do its servers answer as well, and with which tools?", "kars check --connect kars.yaml"),
        ("For a program", "kars check -o json kars.yaml"),
    ),
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--connect", is_flag=True, help="Also open each server and list its tools.")
@output_option
@click.pass_context
def command(context: click.Context, *, file: Path | None, connect: bool, output: Output) -> None:
    """Validate a configuration, and say every mistake in it.

    FILE is a YAML or JSON file; without it, $KARS_CONFIG or ./kars.yaml.

    \b
    Exit codes:
      0  the file is valid (and, with --connect, every server answered); there may be warnings
      1  the file is not valid or cannot be read
      3  with --connect: a server could not be reached
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    path = file or default_path(os.environ)
    if path is None:
        raise UserError(f"there is no {DEFAULT_FILE} here; name a file or set KARS_CONFIG")
    try:
        config = load(path, environ=os.environ)
    except InvalidConfigError as error:
        if output == "table":
            raise
        problems = [{"path": each.path, "message": each.message} for each in error.found]
        emit({"valid": False, "problems": problems}, output, str)
        context.exit(FOUND)
    try:
        _check_plugins(config)
    except ConfigError as error:
        if output == "table":
            raise ConfigError(error.problems, error.source or str(path)) from None
        pairs = (problem.partition(": ") for problem in error.problems)
        problems = [{"path": place, "message": message} for place, _, message in pairs]
        emit({"valid": False, "problems": problems}, output, str)
        context.exit(FOUND)
    answer: dict[str, object] = {"valid": True, "problems": [], "config": to_plain(config)}
    count = len(config.servers)
    lines = [f"{click.format_filename(path)}: valid, {count} server{'s'[: count != 1]}"]
    status = 0
    if connect:
        answer["servers"], reached = _probe(config, lines)
        status = 0 if reached else UNDETERMINED
    warnings = [*advice(config), *_not_there(config)]
    answer["warnings"] = [{"path": where, "message": message} for where, message in warnings]
    lines += [f"warning: {where}: {message}" for where, message in warnings]
    emit(answer, output, lambda: "\n".join(lines))
    context.exit(status)


def _not_there(config: Config) -> list[tuple[str, str]]:
    """What `kars run` would not start without, and may well be there only where it runs."""
    file = config.agent_auth.token_from_file
    if file is None or file.is_file():
        return []
    where = "agentAuth.tokenFromFile"
    return [(where, f"{file} is not there; the router does not start without it")]


def _check_plugins(config: Config) -> None:
    """Loads what the configuration wants loaded.

    Raises:
        PluginError: a required plugin is missing, or options do not fit.
        ConfigError: a policy cannot be used.
    """
    from kars_router.hookspecs import GovernanceSettings
    from kars_router.plugins import Plugins
    from kars_router.telemetry import configure_logging

    configure_logging(level="error", style="console")
    plugins = Plugins.load(
        blocked=config.plugins.blocked,
        required=config.plugins.required,
        options={name: dict(options) for name, options in config.plugins.options.items()},
    )
    settings = GovernanceSettings(policies=config.policies)
    plugins.governors(settings)
    plugins.transformers(settings)


def _probe(config: Config, lines: list[str]) -> tuple[list[dict[str, object]], bool]:
    """Opens every server and adds a line for each; returns them as data, and if all answered."""
    import trio

    from kars_router.service import probe_servers
    from kars_router.telemetry import configure_logging

    configure_logging(level="error", style="console")  # the answer says what went wrong
    probed = []
    for name, reached, said_of_it, tools in trio.run(probe_servers, config):
        detail = said_of_it.removeprefix(f"{name}: ")  # as lines of the log begin
        probed.append({"name": name, "ok": reached, "detail": detail, "tools": list(tools)})
        said = (
            f"{len(tools)} tool{'s'[: len(tools) != 1]}: {', '.join(tools)}"
            if tools
            else "no tools"
        )
        parts = [f"{name}: connected" if reached else f"{name}: not reached", detail]
        lines.append(clean(", ".join([part for part in parts if part] + [said] * reached)))
    return probed, all(each["ok"] for each in probed)
