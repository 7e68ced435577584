"""Settings of an McpServer: what a server entry has, and what only the custom resource has.

Owns names, types and defaults of `McpServer.spec`, and how it becomes an entry of `servers`. The
fields of a server entry are inherited, so both stay the same. What names a file or a program is
left out: it would be one of the router's own, which whoever writes the resource may not choose.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from attrs import field, fields, frozen

from kars_router.config.auth import OAuth
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import NEEDED, NO_KEY, Command, LabelOrAny, Scope, Secret, Sentence
from kars_router.config.plain import to_file
from kars_router.config.schema import Server
from kars_router.config.toolpolicyspec import BundleRef

_NOTHING: FrozenMap[Any, Any] = FrozenMap()


@frozen(kw_only=True)
class ServerOAuth(OAuth):
    """How tokens for the server are got.

    With an issuer and no client it only says who issues the server's tokens, as manifests of kars
    do; the router cannot get one then.
    """

    client_secret_from_file: Path | None = field(default=None, metadata=NO_KEY)
    subject_token_from_file: Path | None = field(default=None, metadata=NO_KEY)
    ca_file: Path | None = field(default=None, metadata=NO_KEY)

    @property
    def has_client(self) -> bool:
        """Whether it says who the router is, so that tokens can be got."""
        return bool(self.client_id or self.client_id_from_env)

    def with_scopes(self, scopes: tuple[str, ...]) -> OAuth:
        """The same for a server's entry; `scopes` are asked for if it has none of its own."""
        own = {each.name: getattr(self, each.name) for each in fields(OAuth)}
        return OAuth(**{**own, "scopes": self.scopes or scopes})


class Preset(enum.StrEnum):
    """Servers that kars itself knows how to run."""

    PLAYWRIGHT = "playwright"
    EVERYTHING = "everything"


@frozen(kw_only=True)
class Managed:
    """A server that kars itself runs.

    Attributes:
        preset: which one.
    """

    preset: Preset | None = field(default=None, metadata=NEEDED)


@frozen(kw_only=True)
class AllowedSandboxes:
    """Which sandboxes may refer to the server; both have to fit.

    Attributes:
        match_labels: labels that a sandbox must have.
        namespaces: namespaces, beside the server's own, whose sandboxes may refer to it; `*` stands
            for every one.
    """

    match_labels: FrozenMap[str, str] = _NOTHING
    namespaces: tuple[LabelOrAny, ...] = ()


@frozen(kw_only=True)
class McpServerSpec(Server):
    """An upstream MCP server, for the sandboxes that refer to it.

    Attributes:
        allowed_sandboxes: which sandboxes may refer to it; those of its own namespace by default.
        production_mode: whether the URL must be https and the issuer of its tokens be named.
        scopes: what is asked for when a token is got, as `oauth.scopes`.
        display_name: a name for people.
        bundle_ref: a signed bundle; not supported, so that such a server is not `Ready`.
        managed: a server that kars itself runs; not supported likewise.
    """

    command: Command = field(default=(), metadata=NO_KEY)
    args: tuple[str, ...] = field(default=(), metadata=NO_KEY)
    env: FrozenMap[str, Secret] = field(default=_NOTHING, metadata=NO_KEY)
    bearer_from_file: Path | None = field(default=None, metadata=NO_KEY)
    ca_file: Path | None = field(default=None, metadata=NO_KEY)
    oauth: ServerOAuth | None = None
    allowed_sandboxes: AllowedSandboxes = AllowedSandboxes()
    production_mode: bool = False
    scopes: tuple[Scope, ...] = ()
    display_name: Sentence | None = None
    bundle_ref: BundleRef | None = None
    managed: Managed | None = None

    @property
    def unusable(self) -> str:
        """Why no router can use the server although the resource is valid; empty if one can.

        The rest of a sentence that starts with the server.
        """
        if self.bundle_ref is not None:
            return "names a signed bundle (bundleRef), which is not supported; give its url"
        if self.managed is not None:
            return "is to be run by kars (managed), which is not supported; give its url"
        if self.oauth and not self.oauth.has_client and not self.bearer_from_env:
            return "needs tokens of its issuer; name the client in oauth.clientIdFromEnv"
        return ""

    @property
    def server(self) -> Server:
        """The settings of the router for it.

        Only for a usable one.
        """
        own: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Server)}
        has_client = self.oauth is not None and self.oauth.has_client
        oauth = self.oauth.with_scopes(self.scopes) if self.oauth and has_client else None
        return Server(**{**own, "oauth": oauth})

    def entry(self) -> dict[str, Any]:
        """Its entry in `servers` of a router's configuration, as plain data.

        Only for a usable one. It holds what differs from the defaults, secrets included.
        """
        return to_file(self.server)
