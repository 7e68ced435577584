"""The façade over pluggy: one typed method for each hook.

Owns loading, blocking, order, and the crash barrier around every single plugin call. The rest of
the router never touches pluggy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy
from attrs import frozen

from kars_router import hookspecs
from kars_router.barriers import (
    Broken,
    GuardedCredentials,
    GuardedGovernor,
    GuardedTransformer,
    report,
)
from kars_router.errors import ConfigError, PluginError
from kars_router.hookspecs import AuditSink, Credentials, GovernanceSettings
from kars_router.model import Failure, LossVerdict, ServerInfo, SessionInfo, ToolCall
from kars_router.telemetry import Metrics, log

if TYPE_CHECKING:
    from kars_router.egress import Place, SandboxEgress

GROUP: Final = "kars_router"
# The later ones are asked first.
BUILTINS: Final = (
    "allowlist",
    "pins",
    "loss",
    "credentials",
    "oauth",
    "egress",
    "stdout-sink",
)


@frozen(kw_only=True)
class PluginEntry:
    """A loaded plugin, as `kars plugins` lists it; in the order in which hooks are called."""

    name: str
    version: str
    builtin: bool
    hooks: tuple[str, ...]
    error: str = ""


class Plugins:
    """The loaded plugins.

    Attributes:
        broken: those that are installed and could not be loaded, each with its error.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._metrics = metrics
        self._versions: dict[str, str] = {}
        self._required: frozenset[str] = frozenset()
        self.broken: list[PluginEntry] = []

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
        host._required = frozenset(required)
        options = options or {}
        for name in BUILTINS:
            if name not in blocked:
                host._load_builtin(name, options.get(name, {}))
        points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)
        for point in points:
            if point.name not in blocked:
                host._load_installed(point, options.get(point.name, {}))
        names = {entry.name for entry in host.entries()}
        for name in required:
            if name not in names:
                raise PluginError(
                    f"plugin {name} is required but not installed; install it, or take it out of "
                    "plugins.required"
                )
        for name in options:
            if name not in names and name not in blocked:
                raise PluginError(f"plugins.options names {name}, which is not installed")
        for name in {*blocked} - {*BUILTINS} - {point.name for point in points}:
            log().warning("plugin_blocked_is_not_installed", plugin=name)
        return host

    def _load_builtin(self, name: str, options: Mapping[str, Any]) -> None:
        module = importlib.import_module(f"kars_router.builtins.{name.replace('-', '_')}")
        # One that has options keeps them in an object, since modules are shared.
        made = getattr(module, "Plugin", None)
        self.register(made() if made else module, name, "")
        self.configure(name, options)

    def _load_installed(
        self, point: importlib.metadata.EntryPoint, options: Mapping[str, Any]
    ) -> None:
        version = point.dist.version if point.dist else ""
        try:
            self.register(point.load(), point.name, version)
            if not options:
                self.configure(point.name, options)
        except Exception as error:
            if point.name in self._required:
                raise PluginError(f"plugin {point.name}: {error}") from error
            self._leave_out(point.name, version, error)
        else:
            # What is wrong with options is a mistake of whoever wrote them.
            if options:
                self.configure(point.name, options)

    def _leave_out(self, name: str, version: str, error: Exception) -> None:
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        log().error("plugin_broken", plugin=name, error=repr(error))
        self.broken.append(
            PluginEntry(name=name, version=version, builtin=False, hooks=(), error=repr(error))
        )

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
                return GuardedCredentials(name, value)
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

    def governors(
        self, settings: GovernanceSettings, *, strict: bool = True
    ) -> tuple[GuardedGovernor, ...]:
        """The governors for the policies in force, in the order in which they are asked.

        Args:
            settings: the policies, and where to keep what outlives the process.
            strict: whether a plugin that fails is an error. If not, and the plugin is not required,
                it is taken to deny every call: the router runs, and nothing undecided passes.

        Raises:
            ConfigError: a policy cannot be used, or there are policies that no plugin enforces.
            PluginError: a plugin failed.
        """
        found = tuple(
            GuardedGovernor(name, governor, self._metrics)
            for name, governor in self._made("kars_governors", settings, strict=strict)
        )
        enforced = any(getattr(each.governor, "enforces_policies", False) for each in found)
        if settings.policies and not enforced:
            advised = "install kars-plugin-toolpolicy, and do not block it"
            raise ConfigError([f"policies: are enforced by no plugin; {advised}"])
        return found

    def transformers(
        self, settings: GovernanceSettings, *, strict: bool = True
    ) -> tuple[GuardedTransformer, ...]:
        """The transformers, in the order in which arguments pass them.

        Args:
            settings: as for `governors`.
            strict: likewise; what a plugin that failed should have seen does not pass.

        Raises:
            ConfigError: a policy cannot be used.
            PluginError: a plugin failed.
        """
        return tuple(
            GuardedTransformer(name, transformer, self._metrics)
            for name, transformer in self._made("kars_transformers", settings, strict=strict)
        )

    def audit_sinks(self) -> list[tuple[str, AuditSink]]:
        """The sinks of audit records, each with its plugin's name."""
        return [
            (name, sink)
            for name, sinks in self._each("kars_audit_sinks", error=())
            for sink in sinks or ()
        ]

    def egress_rules(
        self, server: ServerInfo, place: Place, rules: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[Mapping[str, Any]]:
        """The egress rules that a server needs; the built-in derivation is asked first."""
        for impl in self._manager.hook.kars_egress_rules.get_hookimpls():
            given = {"server": server, "place": place, "rules": rules}
            found = self._one(impl, "kars_egress_rules", None, given)
            if found is not None:
                rules = found
        return rules

    def egress_objects(self, sandbox: SandboxEgress, place: Place) -> SandboxEgress:
        """What is opened for a sandbox, with the manifests that plugins add."""
        from kars_router.egress import SandboxEgress

        for impl in self._manager.hook.kars_egress_objects.get_hookimpls():
            given = {"sandbox": sandbox, "place": place}
            found = self._one(impl, "kars_egress_objects", None, given)
            if isinstance(found, SandboxEgress):
                sandbox = found
        return sandbox

    def session_lost(self, session: SessionInfo, reason: str) -> None:
        """Tells every plugin of a lost upstream session."""
        for _ in self._each("kars_session_lost", session=session, reason=reason):
            pass

    def session_restored(self, session: SessionInfo, reason: str) -> None:
        """Tells every plugin of a session that has taken a lost one's place."""
        for _ in self._each("kars_session_restored", session=session, reason=reason):
            pass

    def session_opened(self, session: SessionInfo) -> None:
        """Tells every plugin of a new upstream session."""
        for _ in self._each("kars_session_opened", session=session):
            pass

    def session_closed(self, session: SessionInfo, reason: str) -> None:
        """Tells every plugin of an ended upstream session."""
        for _ in self._each("kars_session_closed", session=session, reason=reason):
            pass

    def configure(self, name: str, options: Mapping[str, Any]) -> None:
        """Gives a plugin its options.

        Raises:
            PluginError: it takes none, or cannot use these.
        """
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

    def _made(
        self, hook: str, settings: GovernanceSettings, *, strict: bool
    ) -> Iterator[tuple[str, Any]]:
        """What each plugin makes; unlike elsewhere, a failure is not passed over."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        for impl in reversed(caller.get_hookimpls()):
            try:
                given = [settings] if impl.argnames else []
                found: Any = impl.function(*given)
                made = tuple(found or ())
            except (ConfigError, PluginError):
                raise
            except Exception as error:
                log().error("plugin_error", plugin=impl.plugin_name, hook=hook, exc_info=error)
                if strict or impl.plugin_name in self._required:
                    raise PluginError(
                        f"plugin {impl.plugin_name}: {hook} failed: {error!r}"
                    ) from error
                made = (Broken(),)
            yield from ((impl.plugin_name, each) for each in made)

    def _each(self, hook: str, *, error: Any = None, **arguments: Any) -> Iterator[tuple[str, Any]]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        for impl in reversed(caller.get_hookimpls()):
            yield impl.plugin_name, self._one(impl, hook, error, arguments)

    def _one(self, impl: Any, hook: str, error: Any, arguments: Mapping[str, Any]) -> Any:
        try:
            return impl.function(*(arguments[name] for name in impl.argnames))
        except Exception as problem:  # noqa: BLE001 - crash barrier: one plugin call
            report(impl.plugin_name, hook, problem, self._metrics)
            return error
