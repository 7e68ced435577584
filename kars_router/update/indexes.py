"""Which indexes a copy's installer would ask, with logins for them.

Owns the question to the installer for its default index, because no index has its name written
into this project, and the look into the netrc file. Starts processes, and reads files.
"""

from __future__ import annotations

import netrc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attrs import evolve

from kars_router.errors import UndeterminedError
from kars_router.update import home, pip_settings, uv_settings
from kars_router.update.installation import Installation, Manner
from kars_router.update.settings import Index, Settings, index_from
from kars_router.update.uv_settings import RECEIPT

# Not an interface that pip promises, but where its releases have had it since 2018, and a tenth of
# the time that its help takes, which says the same and is asked where this fails.
_PIP_PROGRAM: Final = (
    "from pip._internal.models.index import PyPI; print('default:', PyPI.simple_url)"
)
_DEFAULT: Final = re.compile(r"default:?\s+<?(https://[^\s<>()]+)")


def settings_of(installation: Installation, environ: Mapping[str, str], limit: float) -> Settings:
    """Finds out what is to be asked for releases.

    Args:
        installation: whose installer counts.
        environ: the variables.
        limit: seconds that the installer gets to name its default index, should it be needed.

    Returns:
        Settings with at least one index.

    Raises:
        UndeterminedError: something cannot be read, no index may be used, or none is known.
    """
    settings = _configured(installation, environ)
    indexes = settings.indexes
    if settings.wants_default:
        indexes += (_default(installation, limit),)
    # An index that is named twice is asked once.
    urls = {index.url: index for index in reversed(indexes)}
    unique = tuple(urls[url] for url in dict.fromkeys(index.url for index in indexes))
    return evolve(settings, indexes=tuple(_with_login(each, environ) for each in unique))


def _configured(installation: Installation, environ: Mapping[str, str]) -> Settings:
    prefix = installation.prefix
    if not installation.uses_uv:
        return pip_settings.read(environ, prefix, sys.platform, installation.arguments)
    match installation.manner:
        case Manner.UV_TOOL:
            return uv_settings.read(environ, receipt=prefix / RECEIPT)
        case Manner.PIPX:
            kept = pip_settings.from_arguments(installation.arguments)
            return uv_settings.read(environ, pip_table=True, arguments=kept)
        case _:
            return uv_settings.read(environ, project=prefix, pip_table=True)


def _default(installation: Installation, limit: float) -> Index:
    """The index that the installer goes to by itself."""
    for command in _questions(installation):
        try:
            done = subprocess.run(  # noqa: S603 (our own interpreter, or the user's uv)
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=limit,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found := _DEFAULT.search(done.stdout.decode("ascii", "replace")):
            return index_from(found[1])
    raise UndeterminedError("no package index is configured, and the installer does not name one")


def _questions(installation: Installation) -> Iterator[Sequence[str]]:
    python = installation.python
    if installation.uses_uv and (uv := shutil.which("uv")):
        yield uv, "tool", "install", "--help"
    yield python, "-P", "-c", _PIP_PROGRAM
    yield python, "-P", "-m", "pip", "install", "--help"


def _with_login(index: Index, environ: Mapping[str, str]) -> Index:
    """An index with the login that the netrc file has for its host, if it has none yet."""
    if index.login is not None:
        return index
    named = environ.get("NETRC")
    user = home(environ)
    for path in (Path(named),) if named else (user / ".netrc", user / "_netrc"):
        if not path.exists():
            continue
        try:
            entry = netrc.netrc(os.fspath(path)).authenticators(urlsplit(index.url).hostname or "")
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
            continue
        if entry is not None:
            return evolve(index, login=(entry[0] or "", entry[2] or ""))
    return index
