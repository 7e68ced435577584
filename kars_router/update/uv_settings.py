"""Where uv would look: its variables, what it noted when it installed a tool, and its files.

Owns the order of precedence and the names of uv's settings; its reference has both under
"Configuration" and "Indexes". Reads files and nothing else.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from kars_router.errors import UndeterminedError
from kars_router.update import home
from kars_router.update.settings import Index, Settings, Wire, index_from

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
RECEIPT: Final = "uv-receipt.toml"


@frozen
class _Source:
    """What one place says. Of two places, the first that names a default index has it."""

    default: tuple[str, str] | None = None  # name, URL
    others: tuple[tuple[str, str], ...] = ()
    no_index: bool = False
    offline: bool = False
    strategy: str = ""
    insecure: tuple[str, ...] = ()


def read(
    environ: Mapping[str, str],
    *,
    receipt: Path | None = None,
    project: Path | None = None,
    pip_table: bool = False,
    arguments: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Reads what uv would go by.

    Args:
        environ: the variables, `HOME` among them.
        receipt: what uv noted about a tool, if it is one that `uv tool` made.
        project: a directory; the settings of the project that it is part of count. None for tools,
            for which uv does not look at projects.
        pip_table: whether settings for `uv pip` count.
        arguments: options by pip's names, stronger than the rest.

    Raises:
        UndeterminedError: a file or an index cannot be read, or uv may use no index.
    """
    sources = [_from_arguments(arguments), _from_variables(environ)]
    if receipt is not None:
        sources.append(_from_receipt(receipt))
    tables = list(_tables(environ, project))
    if pip_table:
        # What stands in that table goes above what stands outside of it, in any file.
        sources += [_from_table(table.get("pip")) for table in tables]
    sources += [_from_table(table) for table in tables]
    if any(each.no_index for each in sources):
        raise UndeterminedError("uv is set to use no index")
    if any(each.offline for each in sources):
        raise UndeterminedError("uv is set to stay offline")
    default = next((each.default for each in sources if each.default), None)
    named = [*(other for each in sources for other in each.others), *([default] if default else [])]
    strategy = next((each.strategy for each in sources if each.strategy), "first-index")
    return Settings(
        indexes=tuple(_index(name, url, environ) for name, url in dict.fromkeys(named)),
        wants_default=default is None,
        first_only=strategy == "first-index",
        wire=Wire(
            trusted=frozenset(host.lower() for each in sources for host in each.insecure),
            plain=True,
        ),
    )


def _index(name: str, url: str, environ: Mapping[str, str]) -> Index:
    index = index_from(url)
    if not name:
        return index
    variable = f"UV_INDEX_{re.sub('[^A-Z0-9]', '_', name.upper())}"
    user, password = environ.get(f"{variable}_USERNAME"), environ.get(f"{variable}_PASSWORD")
    if user is None and password is None:
        return index
    return Index(index.url, (user or "", password or ""))


def _from_arguments(arguments: Mapping[str, str]) -> _Source:
    url = arguments.get("index-url")
    return _Source(
        default=("", url) if url else None,
        others=tuple(("", each) for each in arguments.get("extra-index-url", "").split()),
        no_index="no-index" in arguments,
        insecure=tuple(arguments.get("trusted-host", "").split()),
    )


def _from_variables(environ: Mapping[str, str]) -> _Source:
    def words(name: str) -> tuple[str, ...]:
        return tuple(environ.get(name, "").split())

    default = [*words("UV_DEFAULT_INDEX"), *words("UV_INDEX_URL")]
    return _Source(
        default=_named(default[0]) if default else None,
        others=tuple(map(_named, (*words("UV_INDEX"), *words("UV_EXTRA_INDEX_URL")))),
        no_index=environ.get("UV_NO_INDEX", "").lower() in _TRUE,
        offline=environ.get("UV_OFFLINE", "").lower() in _TRUE,
        strategy=environ.get("UV_INDEX_STRATEGY", ""),
        insecure=words("UV_INSECURE_HOST"),
    )


def _named(text: str) -> tuple[str, str]:
    """The name and the URL in `name=URL`, or no name and the URL."""
    name, there, url = text.partition("=")
    return (name, url) if there and re.fullmatch(r"[\w.-]+", name) else ("", text)


def _from_receipt(path: Path) -> _Source:
    """What uv noted with the tool; it goes by that again when it upgrades it."""
    tool = _load(path).get("tool")
    return _from_table(tool.get("options") if isinstance(tool, dict) else None)


def _tables(environ: Mapping[str, str], project: Path | None) -> Iterator[Mapping[str, Any]]:
    """The settings of uv's files, strongest first."""
    if named := environ.get("UV_CONFIG_FILE"):
        yield _load(Path(named))
        return
    if environ.get("UV_NO_CONFIG", "").lower() in _TRUE:
        return
    if project is not None:
        yield _project_table(project)
    yield _load(Path(environ.get("XDG_CONFIG_HOME") or home(environ) / ".config", "uv", "uv.toml"))
    shared = [Path(each) for each in environ.get("XDG_CONFIG_DIRS", "").split(":") if each]
    for directory in (*(shared or [Path("/etc/xdg")]), Path("/etc")):
        if (path := directory / "uv" / "uv.toml").is_file():
            yield _load(path)
            return


def _project_table(project: Path) -> Mapping[str, Any]:
    """The settings of the nearest project that contains a directory."""
    for directory in (project, *project.parents):
        if (path := directory / "uv.toml").is_file():
            return _load(path)
        if (path := directory / "pyproject.toml").is_file():
            tool = _load(path).get("tool")
            table = tool.get("uv") if isinstance(tool, dict) else None
            if isinstance(table, dict):
                return table
    return {}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError):
        raise UndeterminedError(f"uv's configuration {path} cannot be read") from None


def _from_table(table: object) -> _Source:
    """Settings of a file. What has another type than uv expects is left out: uv will say so."""
    if not isinstance(table, dict):
        return _Source()
    indexes = [each for each in _list(table, "index") if isinstance(each, dict)]
    usable = [
        (
            each.get("default") is True,
            (name if isinstance(name := each.get("name"), str) else "", each["url"]),
        )
        for each in indexes
        # An explicit one is only for the packages that name it.
        if isinstance(each.get("url"), str) and each.get("explicit") is not True
    ]
    defaults = [entry for is_default, entry in usable if is_default]
    if not defaults and isinstance(url := table.get("index-url"), str):
        defaults = [("", url)]
    others = [entry for is_default, entry in usable if not is_default]
    return _Source(
        default=defaults[0] if defaults else None,
        others=(*others, *(("", url) for url in _strings(table, "extra-index-url"))),
        no_index=table.get("no-index") is True,
        offline=table.get("offline") is True,
        strategy=strategy if isinstance(strategy := table.get("index-strategy"), str) else "",
        insecure=tuple(_strings(table, "allow-insecure-host")),
    )


def _list(table: Mapping[str, Any], name: str) -> list[Any]:
    value = table.get(name)
    return value if isinstance(value, list) else []


def _strings(table: Mapping[str, Any], name: str) -> Iterable[str]:
    return (each for each in _list(table, name) if isinstance(each, str))
