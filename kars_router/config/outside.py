"""What a configuration names outside itself: variables, certificate files, directories.

Owns what relative paths are relative to. The environment is passed in; files are read, so this
blocks.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import evolve

from kars_router.config.addresses import Address
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.problems import Problem
from kars_router.config.schema import Config
from kars_router.config.values import ENV_NAME

_OF_AGENTS: Final = ("tokenFromEnv",)
_OF_SERVERS: Final = ("bearerFromEnv",)
_OF_OAUTH: Final = ("clientIdFromEnv", "clientSecretFromEnv", "subjectTokenFromEnv")


def outside_problems(
    document: Mapping[object, object], base: Path, environ: Mapping[str, str] | None
) -> Iterator[Problem]:
    """Looks up the variables and certificate files that servers name.

    Args:
        document: plain data, not yet structured, so that this adds to all other problems.
        base: the directory that relative paths start from.
        environ: the environment; None looks nothing up.
    """
    if environ is None:
        return
    yield from _variables(document.get("agentAuth"), _OF_AGENTS, ("agentAuth",), environ)
    servers = document.get("servers")
    if not isinstance(servers, Mapping):
        return
    for name, server in servers.items():
        if not isinstance(name, str) or not isinstance(server, Mapping):
            continue
        yield from _variables(server, _OF_SERVERS, ("servers", name), environ)
        yield from _variables(server.get("oauth"), _OF_OAUTH, ("servers", name, "oauth"), environ)
        for section, path in ((server, ()), (server.get("oauth"), ("oauth",))):
            file = section.get("caFile") if isinstance(section, Mapping) else None
            if isinstance(file, str) and file.isprintable() and file:
                complaint = _check_authorities(_absolute(Path(file), base, environ))
                if complaint:
                    yield Problem(("servers", name, *path, "caFile"), complaint)


def _variables(
    section: object, keys: Iterable[str], path: tuple[str, ...], environ: Mapping[str, str]
) -> Iterator[Problem]:
    if not isinstance(section, Mapping):
        return
    for key in keys:
        variable = section.get(key)
        if isinstance(variable, str) and ENV_NAME.match(variable):
            complaint = _check_token(variable, environ.get(variable))
            if complaint:
                yield Problem((*path, key), complaint)


def _check_token(variable: str, token: str | None) -> str | None:
    # Only what looks like a variable is repeated: people paste tokens here.
    named = f"the variable {variable}" if variable.isupper() else "the variable that it names"
    if token is None:
        return f"{named} is not set"
    if not token.strip():
        return f"{named} is empty"
    if not re.match(r"[!-~]+\Z", token.strip()):
        return f"{named} holds characters that no token has (white space or non-ASCII)"
    return None


def _check_authorities(path: Path) -> str | None:
    try:
        # A directory or a file without certificates is refused as well.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return f"{str(path)!r} holds no certificates in PEM form"
    except (OSError, ValueError) as error:
        return f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or 'bad name'}"
    return None


def with_places(config: Config, base: Path, environ: Mapping[str, str] | None) -> Config:
    """The configuration with absolute paths and, if `environ` says where, a state directory.

    Args:
        config: as structured.
        base: the directory that the file's relative paths start from.
        environ: for `HOME` and `KARS_STATE_DIR`.
    """

    def placed(section: Any) -> Any:
        """Its files and those of the sections in it."""
        changes: dict[str, Any] = {}
        for each in attrs.fields(type(section)):
            value = getattr(section, each.name)
            if isinstance(value, Path):
                changes[each.name] = _absolute(value, base, environ)
            elif attrs.has(type(value)) and not isinstance(value, Address):
                changes[each.name] = placed(value)
        return evolve(section, **changes)

    servers = {name: placed(server) for name, server in config.servers.items()}
    config = evolve(placed(config), servers=FrozenMap(servers))
    return evolve(config, state=config.state or _default_state(environ or {}))


def _absolute(path: Path, base: Path, environ: Mapping[str, str] | None) -> Path:
    home = (environ or {}).get("HOME")
    if home and path.parts[:1] == ("~",):
        return Path(home, *path.parts[1:])
    return Path(os.path.normpath(base / path))


def _default_state(environ: Mapping[str, str]) -> Path | None:
    if environ.get("KARS_STATE_DIR"):
        return Path.cwd() / environ["KARS_STATE_DIR"]
    return Path(environ["HOME"], ".kars") if environ.get("HOME") else None
