"""The façade over pluggy: one typed method for each hook.

Owns loading, blocking, order, and the crash barrier around every single plugin call. The rest of
the router never touches pluggy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import pluggy
import trio
from attrs import frozen

from kars_router import hookspecs
from kars_router.errors import KarsError, PluginError, UserError
from kars_router.hookspecs import Credentials
from kars_router.model import Failure, LossVerdict, ServerInfo, SessionInfo, ToolCall
from kars_router.telemetry import Metrics, log

GROUP: Final = "kars_router"
_CREDENTIALS_SECONDS: Final = 10.0
BUILTINS: Final = ("allowlist", "loss", "credentials")


@frozen(kw_only=True)
class PluginEntry:
    """A loaded plugin, as `kars plugins` lists it; in the order in which hooks are called."""

    name: str
    version: str
    builtin: bool
    hooks: tuple[str, ...]


@frozen
class _GuardedCredentials:
    """A plugin's credentials behind a barrier and a deadline."""

    plugin: str
    credentials: Credentials

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        try:
            with trio.fail_after(_CREDENTIALS_SECONDS):
                return dict(await self.credentials.headers(refresh=refresh))
        except UserError:
            raise
        except trio.TooSlowError as error:
            raise UserError(f"plugin {self.plugin} took too long for credentials") from error
        except Exception as error:
            log().error("plugin_error", plugin=self.plugin, hook="credentials", exc_info=error)
            raise UserError(f"plugin {self.plugin} failed to supply credentials") from error


class Plugins:
    """The loaded plugins."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._metrics = metrics
        self._versions: dict[str, str] = {}

    @classmethod
    def load(
        cls,
        *,
        blocked: Sequence[str] = (),
        required: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        metrics: Metrics | None = None,
    ) -> Plugins:
        """Loads the built-in plugins and every installed one.

        A plugin that cannot be loaded is named in the log and left out, unless it is required.

        Args:
            blocked: names of plugins to leave out, built-in ones included.
            required: names of plugins without which the router must not run.
            options: each plugin's own options by its name.
            metrics: where plugin errors are counted.

        Raises:
            PluginError: a required plugin is missing or broken, an option is wrong, or options
                name a plugin that is not there.
        """
        host = cls(metrics)
        options = options or {}
        for name in BUILTINS:
            if name not in blocked:
                module = importlib.import_module(f"kars_router.builtins.{name}")
                host.register(module, name, "")
                host._configure(name, options.get(name, {}))
        for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
            if point.name in blocked:
                continue
            try:
                plugin = point.load()
                host.register(plugin, point.name, point.dist.version if point.dist else "")
            except Exception as error:
                if point.name in required:
                    raise PluginError(f"plugin {point.name}: {error}") from error
                log().error("plugin_broken", plugin=point.name, error=repr(error))
            else:
                host._configure(point.name, options.get(point.name, {}))
        names = {entry.name for entry in host.entries()}
        for name in required:
            if name not in names:
                raise PluginError(f"plugin {name} is required but not installed")
        for name in options:
            if name not in names and name not in blocked:
                raise PluginError(f"plugins.options names {name}, which is not installed")
        return host

    def register(self, plugin: object, name: str, version: str = "") -> None:
        """Adds one plugin; later ones are asked first.

        Raises:
            PluginError: the name is taken, or an implementation does not fit its hook.
        """
        try:
            registered = self._manager.register(plugin, name)
            self._manager.check_pending()
        except (ValueError, pluggy.PluginValidationError) as error:
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            raise PluginError(f"plugin {name}: {error}") from error
        if registered is None:
            raise PluginError(f"plugin {name} is blocked")
        for caller in self._manager.get_hookcallers(plugin) or ():
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin and (impl.hookwrapper or impl.wrapper):
                    self._manager.unregister(plugin)
                    raise PluginError(f"plugin {name}: {caller.name} must not be a wrapper")
        self._versions[name] = version

    def entries(self) -> list[PluginEntry]:
        """The loaded plugins in the order in which they are asked."""
        listed = []
        for name, plugin in reversed(self._manager.list_name_plugin()):
            if plugin is None:
                continue
            hooks = tuple(sorted(c.name for c in self._manager.get_hookcallers(plugin) or ()))
            version = self._versions.get(name, "")
            listed.append(
                PluginEntry(name=name, version=version, builtin=name in BUILTINS, hooks=hooks)
            )
        return listed

    def classify_loss(self, failure: Failure) -> LossVerdict:
        """Whether a failure means that the session is gone; silence means that it does not."""
        for name, verdict in self._each("kars_classify_loss", failure=failure):
            if isinstance(verdict, LossVerdict):
                return attrs.evolve(verdict, source=name)
        return LossVerdict(False, "no plugin has an opinion")

    def admits_tool(self, server: ServerInfo, tool: str, definition: Mapping[str, Any]) -> bool:
        """Whether a tool may be seen and called; an error in any plugin means no."""
        answers = list(
            self._each(
                "kars_admit_tool", error=False, server=server, tool=tool, definition=definition
            )
        )
        return any(a is True for _, a in answers) and not any(a is False for _, a in answers)

    def credentials(self, server: ServerInfo) -> Credentials | None:
        """The object that authenticates the router to a server, if any plugin has one."""
        for name, value in self._each("kars_credentials", server=server):
            if value is not None:
                return _GuardedCredentials(name, value)
        return None

    @property
    def detects_state_loss(self) -> bool:
        """Whether any plugin looks at results, so that decoding them is worth its cost."""
        return bool(self._manager.hook.kars_detect_state_loss.get_hookimpls())

    def detect_state_loss(
        self, call: ToolCall, session: SessionInfo, result: Mapping[str, Any]
    ) -> str | None:
        """What a server silently lost, by the first plugin that says so."""
        found = None
        for _, clause in self._each(
            "kars_detect_state_loss", call=call, session=session, result=result
        ):
            if isinstance(clause, str) and clause and found is None:
                found = clause
        return found

    def session_opened(self, session: SessionInfo) -> None:
        """Tells every plugin of a new upstream session."""
        for _ in self._each("kars_session_opened", session=session):
            pass

    def session_closed(self, session: SessionInfo, reason: str) -> None:
        """Tells every plugin of an ended upstream session."""
        for _ in self._each("kars_session_closed", session=session, reason=reason):
            pass

    def _configure(self, name: str, options: Mapping[str, Any]) -> None:
        implemented = False
        for impl in self._manager.hook.kars_configure.get_hookimpls():
            if impl.plugin_name == name:
                implemented = True
                try:
                    impl.function(*([options] if impl.argnames else []))
                except PluginError as error:
                    raise PluginError(f"plugins.options.{name}: {error}") from error
                except Exception as error:
                    raise PluginError(f"plugins.options.{name}: {error!r}") from error
        if options and not implemented:
            raise PluginError(f"plugins.options.{name}: the plugin takes no options")

    def _each(self, hook: str, *, error: Any = None, **arguments: Any) -> Iterator[tuple[str, Any]]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        for impl in reversed(caller.get_hookimpls()):
            try:
                value = impl.function(*(arguments[name] for name in impl.argnames))
            except Exception as problem:  # noqa: BLE001 - crash barrier: one plugin call
                log().error(
                    "plugin_error",
                    plugin=impl.plugin_name,
                    hook=hook,
                    error=repr(problem),
                    exc_info=None if isinstance(problem, KarsError) else problem,
                )
                if self._metrics:
                    self._metrics.plugin_errors.labels(impl.plugin_name, hook).inc()
                value = error
            yield impl.plugin_name, value
