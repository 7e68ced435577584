"""Where pip would look: its configuration files, its variables, and arguments kept by pipx.

Owns the order of precedence and the names of pip's options; its documentation has both under
"Configuration". Reads files and nothing else. A test compares this with what pip itself says.
"""

from __future__ import annotations

import argparse
import configparser
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from kars_router.errors import UndeterminedError
from kars_router.update import home
from kars_router.update.settings import Settings, Wire, index_from

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_NAME: Final = "pip.conf"
_SYSTEM: Final = Path("/etc", _NAME)


def read(
    environ: Mapping[str, str], prefix: Path, platform: str, arguments: Sequence[str] = ()
) -> Settings:
    """Reads what pip would go by.

    Args:
        environ: the variables, `HOME` among them.
        prefix: the environment that pip would install into.
        platform: as `sys.platform` says it.
        arguments: of pip's command line, kept from an earlier run; stronger than the rest.

    Raises:
        UndeterminedError: a file or an index cannot be read, or pip may use no index.
    """
    values = {**_from_files(environ, prefix, platform), **_from_variables(environ)}
    given = from_arguments(arguments)
    extra = [*_words(values, "extra-index-url"), *_words(given, "extra-index-url")]
    trusted = [*_words(values, "trusted-host"), *_words(given, "trusted-host")]
    values.update(given)
    if values.get("no-index", "").lower() in _TRUE:
        raise UndeterminedError("pip is set to use no index")
    first = values.get("index-url", "").strip()
    return Settings(
        indexes=tuple(index_from(url) for url in (first, *extra) if url),
        wants_default=not first,
        wire=Wire(
            trusted=frozenset(host.lower() for host in trusted),
            ca_file=_path(values.get("cert") or _bundle(environ), environ),
            client_cert=_path(values.get("client-cert", ""), environ),
            proxy=values.get("proxy", ""),
        ),
    )


def files(environ: Mapping[str, str], prefix: Path, platform: str) -> Iterator[Path]:
    """The files that pip reads, weakest first, whether they are there or not."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    user = home(environ)
    application_support = Path("Library", "Application Support", "pip", _NAME)
    if platform == "darwin":
        yield "/" / application_support
    else:
        for directory in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep):
            yield Path(directory, "pip", _NAME)
        yield _SYSTEM
    # A file named by the variable takes the place of the user's own.
    if not named or not Path(named).exists():
        yield user / ".pip" / _NAME
        if platform == "darwin" and (user / application_support).parent.is_dir():
            yield user / application_support
        else:
            yield Path(environ.get("XDG_CONFIG_HOME") or user / ".config", "pip", _NAME)
    yield prefix / _NAME
    if named:
        yield Path(named)


def _from_files(environ: Mapping[str, str], prefix: Path, platform: str) -> dict[str, str]:
    """What `[global]` says in any of the files, and above that what `[install]` does."""
    everywhere: dict[str, str] = {}
    installing: dict[str, str] = {}
    for path in files(environ, prefix, platform):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path)
        except (configparser.Error, UnicodeDecodeError):
            raise UndeterminedError(f"pip's configuration {path} cannot be read") from None
        for section, values in (("global", everywhere), ("install", installing)):
            if parser.has_section(section):
                values.update((_option(name), value) for name, value in parser.items(section))
    # An empty value is as good as none, but takes the place of what a weaker file says.
    return {**_filled(everywhere), **_filled(installing)}


def _from_variables(environ: Mapping[str, str]) -> dict[str, str]:
    prefix = "PIP_"
    return _filled(
        {
            _option(name.removeprefix(prefix)): value
            for name, value in environ.items()
            if name.startswith(prefix)
        }
    )


def _filled(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _option(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def from_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """The options of a command line that are of interest here, by their long names.

    Raises:
        UndeterminedError: they make no sense.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-i", "--index-url", "--pypi-url")
    parser.add_argument("--no-index", action="store_const", const="true")
    for name in ("--cert", "--client-cert", "--proxy"):
        parser.add_argument(name)
    for name in ("--extra-index-url", "--trusted-host"):
        parser.add_argument(name, action="append")
    try:
        found, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        raise UndeterminedError("the arguments that pipx has kept for pip make no sense") from None
    return {
        _option(name): " ".join(value) if isinstance(value, list) else value
        for name, value in vars(found).items()
        if value
    }


def _words(values: Mapping[str, str], name: str) -> list[str]:
    return values.get(name, "").split()


def _bundle(environ: Mapping[str, str]) -> str:
    """What the HTTP library inside pip goes by."""
    return environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or ""


def _path(text: str, environ: Mapping[str, str]) -> str:
    return str(home(environ) / text[2:]) if text.startswith("~/") else text
