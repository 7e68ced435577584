"""How this copy was installed, and the command that installs another release of it.

Reads what installers leave behind: `INSTALLER` and `direct_url.json` beside our metadata (PEP 376,
PEP 610), and the files in which pipx and uv keep what they know of an environment. Runs nothing.
"""

from __future__ import annotations

import enum
import json
import shutil
import site
import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from kars_router.update import DISTRIBUTION
from kars_router.update.text import one_line
from kars_router.update.uv_settings import RECEIPT

PIPX_METADATA: Final = "pipx_metadata.json"


class Manner(enum.Enum):
    """The ways of being installed."""

    PIP = "pip in a virtual environment"
    PIPX = "pipx"
    UV_TOOL = "uv tool"
    UV = "uv in a virtual environment"
    UV_PROJECT = "a uv project"
    EDITABLE = "an editable source tree"
    SYSTEM = "the system's Python"
    OTHER = "another installer"


@frozen
class Installation:
    """How this copy was installed.

    Attributes:
        manner: by what, and where.
        prefix: the environment it is in.
        python: the interpreter of that.
        installer: the name that the installer left, fit to be printed; empty if it left none.
        source: the directory it was installed from, if editable; else empty.
        direct: whether it was installed from a place of its own, not from an index.
        uses_uv: whether uv looks up and installs releases, also on behalf of pipx.
        arguments: what pipx passes to pip each time.
        urls: the project's, as its metadata has them: each `label, URL`.
    """

    manner: Manner
    prefix: Path
    python: str
    installer: str = ""
    source: str = ""
    direct: bool = False
    uses_uv: bool = False
    arguments: tuple[str, ...] = field(default=(), repr=False)  # may hold a password
    urls: tuple[str, ...] = ()

    def offered(self) -> bool:
        """Whether `kars update` installs by itself; else it only says how."""
        match self.manner:
            case Manner.PIP:
                return True
            case Manner.UV:
                return self.tool() is not None
            case Manner.PIPX | Manner.UV_TOOL:
                # From a file or a repository, they would take it from there again.
                return not self.direct and self.tool() is not None
            case _:
                return False

    def tool(self) -> str | None:
        """The program that installs, if it is not a module of our own interpreter."""
        return shutil.which("pipx" if self.manner is Manner.PIPX else "uv")

    def command(self, version: str) -> tuple[str, ...]:
        """What installs a release, as arguments; empty where there is no single command.

        Args:
            version: canonical.
        """
        wanted = f"{DISTRIBUTION}=={version}"
        match self.manner:
            case Manner.PIP:
                return (*self._pip(), wanted)
            case Manner.UV:
                uv = (self.tool() or "uv", "pip", "install", "--python", self.python)
                return (*uv, "--refresh-package", DISTRIBUTION, wanted)
            case Manner.PIPX | Manner.UV_TOOL:
                words = ("pipx",) if self.manner is Manner.PIPX else ("uv", "tool")
                if self.direct:
                    return (*words, "install", "--force", wanted)
                return (self.tool() or words[0], *words[1:], "upgrade", self.prefix.name)
            case Manner.UV_PROJECT:
                return ("uv", "sync", "--upgrade-package", wanted)
            case Manner.SYSTEM if self.installer in {"", "pip"}:
                return (*self._pip(), *(("--user",) if self._is_of_user() else ()), wanted)
            case _:
                return ()

    def _pip(self) -> tuple[str, ...]:
        # With -P, a directory called `pip` that the user happens to be in is not taken for it.
        return (self.python, "-P", "-m", "pip", "install")

    def _is_of_user(self) -> bool:
        return Path(__file__).is_relative_to(site.getusersitepackages())


def find() -> Installation | None:
    """Finds out how the running copy was installed; None if it was not installed at all."""
    try:
        return of(distribution(DISTRIBUTION), Path(sys.prefix), Path(sys.base_prefix))
    except PackageNotFoundError:
        return None


def of(package: Distribution, prefix: Path, base: Path) -> Installation:
    """Finds out how a distribution was installed.

    Args:
        package: its metadata.
        prefix: the environment it is in.
        base: the same as `prefix` where that is no virtual environment.
    """
    words = (package.read_text("INSTALLER") or "").split()
    installer = one_line(words[0], 30) if words else ""
    direct = _object(package.read_text("direct_url.json"))
    editable = isinstance(info := direct.get("dir_info"), dict) and info.get("editable") is True
    pipx = _object(_read(prefix / PIPX_METADATA))
    if editable:
        manner = Manner.EDITABLE
    elif not Path(str(package.locate_file(""))).resolve().is_relative_to(prefix.resolve()):
        manner = Manner.SYSTEM  # an environment may let through what is outside of it
    else:
        manner = _manner(prefix, base, installer, is_pipx=bool(pipx))
    return Installation(
        manner=manner,
        prefix=prefix,
        python=sys.executable,
        installer=installer,
        source=_directory(direct.get("url")) if editable else "",
        direct=bool(direct),
        uses_uv=pipx.get("backend") == "uv" if pipx else installer == "uv",
        arguments=_arguments(pipx),
        urls=tuple(package.metadata.get_all("Project-URL") or ()),
    )


def _manner(prefix: Path, base: Path, installer: str, *, is_pipx: bool) -> Manner:
    if is_pipx:
        return Manner.PIPX
    if (prefix / RECEIPT).is_file():
        return Manner.UV_TOOL
    if prefix == base:
        return Manner.SYSTEM
    if installer == "uv":
        return Manner.UV_PROJECT if (prefix.parent / "uv.lock").is_file() else Manner.UV
    return Manner.PIP if installer in {"", "pip"} else Manner.OTHER


def _arguments(pipx: Mapping[str, Any]) -> tuple[str, ...]:
    package = pipx.get("main_package")
    kept = package.get("pip_args") if isinstance(package, dict) else None
    if not isinstance(kept, list) or not all(isinstance(each, str) for each in kept):
        return ()
    return tuple(kept)


def _directory(url: object) -> str:
    """The directory of a `file:` URL, fit to be printed; empty if it is something else."""
    if not isinstance(url, str) or not url.startswith("file://"):
        return ""
    return one_line(unquote(urlsplit(url).path), 1000)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _object(text: str | None) -> Mapping[str, Any]:
    """A JSON object, or an empty one if there is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
