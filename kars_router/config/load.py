"""From files, flags and environment to a `Config`, or to every reason why not.

Owns the order in which these are laid over each other and the order of the problems. Reads files
and blocks meanwhile; a running router calls it from a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attrs import evolve

from kars_router.config.converter import structure_config
from kars_router.config.document import LONGEST, decode, parse_document
from kars_router.config.outside import outside_problems, with_places
from kars_router.config.problems import (
    InvalidConfigError,
    InvalidError,
    Problem,
    in_file_order,
    invalid,
    render_path,
)
from kars_router.config.schema import Config
from kars_router.config.tools_lock import with_pins

DEFAULT_FILE = "kars.yaml"


class Changes(NamedTuple):
    """Names of servers that differ between two configurations, each list in file order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def default_path(environ: Mapping[str, str]) -> Path | None:
    """The file to use when none is named: `$KARS_CONFIG`, else `./kars.yaml` if there is one."""
    if environ.get("KARS_CONFIG"):
        return Path(environ["KARS_CONFIG"])
    here = Path(DEFAULT_FILE)
    return here if here.exists() else None


def load(
    path: Path | None,
    *,
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str],
    pinned: bool = True,
) -> Config:
    """Reads a file and lays flags over it. Blocks while it reads.

    Args:
        path: the file, YAML or JSON in UTF-8 and at most 1 MiB; None for no file.
        upstreams: `NAME=URL` each; a server that allows every tool.
        overrides: values of flags by top-level key (`listen`, `admin`, ...), written as in the
            file; they replace the file's. Problems name them as `--key`.
        environ: the environment, for `KARS_STATE_DIR`, `HOME` and the variables that the file
            names; those must be set.
        pinned: whether the lock of tools is read; only who is about to write it does without.

    Returns:
        A configuration, its paths absolute; without servers only if `servers` is `{}`.

    Raises:
        ConfigError: with every problem (an `InvalidConfigError`, so with paths as values too).
    """
    if path is None:
        return build(None, upstreams=upstreams, overrides=overrides, environ=environ, pinned=pinned)
    source = str(path)
    try:
        text = decode(_read(path, LONGEST + 1))
    except InvalidError as error:
        raise InvalidConfigError(error.problems, source) from None
    return parse(
        text,
        source=source,
        base=path.parent,
        upstreams=upstreams,
        overrides=overrides,
        environ=environ,
        pinned=pinned,
    )


def parse(
    text: str,
    *,
    source: str = "",
    base: Path | None = None,
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    pinned: bool = True,
) -> Config:
    """Like `load`, from a text.

    Args:
        text: YAML or JSON; may be empty.
        source: what to call the text in messages.
        base: the directory that relative paths start from; the current one if None.
        upstreams: as for `load`.
        overrides: as for `load`.
        environ: as for `load`; None leaves out the checks and defaults that need it.
        pinned: as for `load`.

    Raises:
        ConfigError: with every problem.
    """
    try:
        raw, problems = parse_document(text)
    except InvalidError as error:
        raise InvalidConfigError(error.problems, source) from None
    return build(
        raw,
        problems=problems,
        source=source,
        base=base,
        upstreams=upstreams,
        overrides=overrides,
        environ=environ,
        pinned=pinned,
    )


def build(
    raw: object,
    *,
    problems: Iterable[Problem] = (),
    source: str = "",
    base: Path | None = None,
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    pinned: bool = True,
) -> Config:
    """Like `parse`, from plain data; `problems` are those already found in it.

    Raises:
        ConfigError: with every problem.
    """
    found = list(problems)
    document = {} if raw is None else raw
    flags: dict[tuple[str, ...], str] = {}
    if isinstance(document, Mapping):
        document = {**document, **(overrides or {})}
        flags = {(key,): f"--{render_path((key,))}" for key in overrides or {}}
        servers = document.get("servers")
        if servers is None or isinstance(servers, Mapping):
            document["servers"] = {**(servers or {})}
            found += _add_upstreams(document["servers"], upstreams, flags)
            # Only who writes `servers: {}` means none: a sandbox whose servers are not there yet.
            if not document["servers"] and not upstreams and servers is None:
                found.append(Problem(("servers",), "name at least one server"))
        base = Path.cwd() / (base or "")
        found += outside_problems(document, base, environ)
    config = Config()
    try:
        config = structure_config(document)
    except InvalidError as error:
        found += error.problems
    if found:
        found = [_name_flag(problem, flags) for problem in in_file_order(found, document)]
        raise InvalidConfigError(found, source)
    config = with_places(config, base or Path.cwd(), environ)
    try:
        return with_pins(config) if pinned else config
    except InvalidError as error:
        found = [_name_flag(problem, flags) for problem in error.problems]
        raise InvalidConfigError(found, source) from None


def changed_servers(old: Config, new: Config) -> Changes:
    """Compares the servers of two configurations; unchanged ones are in no list."""
    return Changes(
        added=tuple(name for name in new.servers if name not in old.servers),
        removed=tuple(name for name in old.servers if name not in new.servers),
        changed=tuple(
            name for name, server in new.servers.items() if old.servers.get(name, server) != server
        ),
    )


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise invalid(f"cannot be read: {error.strerror or type(error).__name__}") from None
    except ValueError:  # a NUL in the name
        raise invalid("cannot be read: the name holds a forbidden character") from None


def _add_upstreams(
    servers: dict[object, object], upstreams: Sequence[str], flags: dict[tuple[str, ...], str]
) -> Iterator[Problem]:
    for upstream in upstreams:
        name, equals, url = upstream.partition("=")
        flag = f"--upstream {render_path((name,))}"
        if not equals or not name or not url:
            # Without its name it may be a URL with a secret in it.
            yield Problem(("servers",), "must be NAME=URL", "--upstream")
        elif name in servers:
            yield Problem(("servers",), "is a server already; choose another name", flag)
        else:
            servers[name] = {"url": url, "allowedTools": ["*"]}
            flags["servers", name] = flag


def _name_flag(problem: Problem, flags: Mapping[tuple[str, ...], str]) -> Problem:
    for size in (1, 2):
        flag = flags.get(problem.keys[:size])  # type: ignore[arg-type]
        if flag and not problem.flag:
            return evolve(problem, flag=flag)
    return problem
