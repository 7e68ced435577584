"""A whole API server for one test run: started, asked, stopped and started again, ended.

Owns the processes, their ports, their certificates and the ways in. Knows nothing about our own
resources.

Everything here blocks; a Trio test calls it as `await trio.to_thread.run_sync(...)`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field
from cluster_assets import find, wanted_kubernetes
from peers import LOOPBACK, Peer, free_port, missing, peer_environment, start_peer, status_of

from cluster.certificates import Authority, Pair, new_authority, signing_key
from kars_router.kube import Connection, connection_from

# A busy machine takes far longer than the three seconds of an idle one.
_DEADLINE: Final = 120.0

_AUDIT: Final = "audit.log"
_PROGRAMS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")

# What tests look at. The others need nodes, volumes or clouds, and take time to start.
_CONTROLLERS: Final = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
)


def programs() -> dict[str, Path]:
    """The programs of a cluster, by name; without one of them the test ends as `missing` says."""
    kubernetes = wanted_kubernetes()
    found = {name: find(name, kubernetes) for name in _PROGRAMS}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        missing(f"no {', no '.join(absent)}: `python tools/cluster_assets.py` gets them")
    return {name: path for name, path in found.items() if path is not None}


@define
class Cluster:
    """A running API server with RBAC and the default admission plugins. Made by `run_cluster`.

    `admin` is the kubeconfig of a member of system:masters, `controllers` is
    kube-controller-manager, which is paused while the API server is down.
    """

    url: str
    admin: Path
    directory: Path
    authority: Authority
    _programs: Mapping[str, Path]
    _serve: Callable[[], AbstractContextManager[Peer]]
    _served: ExitStack = field(factory=ExitStack, init=False)
    _api_server: Peer | None = field(default=None, init=False)
    controllers: Peer | None = field(default=None, init=False)

    # --- asking ---------------------------------------------------------------------------------

    def kubectl(
        self, *arguments: str | os.PathLike[str], given: str = "", kubeconfig: Path | None = None
    ) -> str:
        """Run kubectl, as the administrator unless told otherwise; its stdout.

        `given` goes to its stdin. Fails the test if kubectl fails.
        """
        done = self.try_kubectl(*arguments, given=given, kubeconfig=kubeconfig)
        if done.returncode != 0:
            command = " ".join(["kubectl", *(str(part) for part in arguments)])
            pytest.fail(f"{command} ended with {done.returncode}\n{done.stderr}", pytrace=False)
        return done.stdout

    def try_kubectl(
        self, *arguments: str | os.PathLike[str], given: str = "", kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as `kubectl` does, whatever comes of it."""
        return subprocess.run(
            [self._programs["kubectl"], "--kubeconfig", kubeconfig or self.admin, *arguments],
            input=given,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        """The environment of a client: no settings and no cache of the user's own."""
        return {**peer_environment(), "HOME": str(self.directory), "KUBECONFIG": str(self.admin)}

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Apply objects on the server's side, as the field manager `kubectl`."""
        # One after the other: kubectl has the server validate objects, but not the items of a List.
        given = "\n".join(map(json.dumps, manifests))
        self.kubectl("apply", "--server-side", "--filename", "-", given=given)

    def define(self, *definitions: Mapping[str, Any]) -> None:
        """Make custom resources known, and return once the API server serves them."""
        self.apply(*definitions)
        wait = ["wait", "--for=condition=Established", "customresourcedefinition", "--all"]
        self.kubectl(*wait, "--timeout=60s")

    def get(self, resource: str, name: str = "", namespace: str = "") -> dict[str, Any]:
        """One object, or without a `name` the list of them."""
        where = ["--namespace", namespace] if namespace else []
        text = self.kubectl("get", resource, *([name] if name else []), *where, "--output", "json")
        found: dict[str, Any] = json.loads(text)
        return found

    def connection(self, kubeconfig: Path | None = None) -> Connection:
        """What `open_kube` needs, for the administrator unless told otherwise."""
        return connection_from(kubeconfig or self.admin, None, None, {})

    # --- as somebody else -----------------------------------------------------------------------

    def token(self, namespace: str, account: str, seconds: int = 3600) -> str:
        """A token of a service account, from the TokenRequest API; at least 600 seconds."""
        # The account `default` of a new namespace takes its controller a moment.
        wait = ["wait", "--for=create", f"serviceaccount/{account}", "--timeout=60s"]
        self.kubectl(*wait, "--namespace", namespace)
        # The account of a new namespace is made by a controller, a moment later.
        wait = ["wait", "--for=create", f"serviceaccount/{account}", "--timeout=60s"]
        self.kubectl(*wait, "--namespace", namespace)
        lifetime = f"--duration={seconds}s"
        return self.kubectl("create", "token", account, "--namespace", namespace, lifetime).strip()

    def kubeconfig(self, namespace: str, account: str) -> Path:
        """A kubeconfig that is this service account, with its namespace as the default one."""
        user = {"token": self.token(namespace, account)}
        file = self.directory / f"{namespace}-{account}.kubeconfig"
        return _write_kubeconfig(file, self.url, self.authority.certificate, user, namespace)

    def requests_of(self, namespace: str, account: str) -> list[dict[str, Any]]:
        """The audit events of all that a service account asked for since the cluster began."""
        who = f"system:serviceaccount:{namespace}:{account}"
        with (self.directory / _AUDIT).open(encoding="utf-8") as lines:
            events = [json.loads(line) for line in lines]
        return [each for each in events if each["user"]["username"] == who]

    # --- stopping and starting ------------------------------------------------------------------

    def start_api_server(self) -> None:
        """Start the API server on its port and return once it is ready; nothing if it runs."""
        if self._api_server is None or self._api_server.returncode is not None:
            self._served.close()
            self._api_server = self._served.enter_context(self._serve())
            self._signal_controllers(signal.SIGCONT)

    def stop_api_server(self) -> None:
        """Stop the API server; etcd keeps its data. All its connections end."""
        if self._api_server is not None:
            # One that is not ready yet answers with half of what it serves. Of a namespace that is
            # being deleted, controllers would take that for everything, and leave the rest behind.
            self._signal_controllers(signal.SIGSTOP)
            # It waits a minute for clients that stay connected, as all that watch do.
            self._api_server.stop(grace=1.0)
        self._served.close()

    def _signal_controllers(self, number: int) -> None:
        if self.controllers is not None:
            self.controllers.signal(number)

    @contextlib.contextmanager
    def api_server_down(self) -> Iterator[None]:
        """Stop the API server for the duration of the block."""
        self.stop_api_server()
        try:
            yield
        finally:
            self.start_api_server()


@contextlib.contextmanager
def run_cluster(directory: Path) -> Iterator[Cluster]:
    """Start a cluster and end it with the block. Logs and keys go to `directory`."""
    paths = programs()
    ports = _ports(4)
    authority = new_authority(directory)
    accounts = signing_key(directory)
    url = f"https://{LOOPBACK}:{ports[0]}"
    with ExitStack() as stack:
        client_url, peer_url = (f"http://{LOOPBACK}:{port}" for port in ports[1:3])
        etcd = _etcd(paths["etcd"], directory / "etcd", client_url, peer_url)
        log = directory / "etcd.log"
        stack.enter_context(start_peer(etcd, log_path=log, port=ports[1], deadline=_DEADLINE))
        server = authority.server()
        command = _api_server(paths["kube-apiserver"], directory, client_url, ports[0])
        command += [
            f"--tls-cert-file={server.certificate}",
            f"--tls-private-key-file={server.key}",
            f"--client-ca-file={authority.certificate}",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
        ]
        trusted = ssl.create_default_context(cafile=authority.certificate)
        # Python 3.13 wants more of an authority than Kubernetes does.
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
        cluster = Cluster(
            url=url,
            admin=_admin(directory, authority, url),
            directory=directory,
            authority=authority,
            programs=paths,
            serve=lambda: start_peer(
                command,
                log_path=_next_log(directory, "kube-apiserver"),
                ready=lambda _: status_of(f"{url}/readyz", trusted) == 200,
                deadline=_DEADLINE,
            ),
        )
        stack.callback(cluster.stop_api_server)
        cluster.start_api_server()
        manager = _controller_manager(paths["kube-controller-manager"], directory, ports[3])
        manager += [
            f"--kubeconfig={_manager(directory, authority, url)}",
            f"--service-account-private-key-file={accounts}",
            f"--root-ca-file={authority.certificate}",
        ]
        cluster.controllers = stack.enter_context(
            start_peer(
                manager,
                log_path=directory / "kube-controller-manager.log",
                ready=lambda _: _controllers_work(cluster),
                deadline=_DEADLINE,
            )
        )
        yield cluster


def _etcd(program: Path, data: Path, client_url: str, peer_url: str) -> list[str]:
    return [
        str(program),
        f"--data-dir={data}",
        # Nothing here has to survive the machine; unheeded, every write waits for the disk.
        "--unsafe-no-fsync",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
    ]


def _api_server(program: Path, directory: Path, etcd_url: str, port: int) -> list[str]:
    return [
        str(program),
        f"--etcd-servers={etcd_url}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        # Nobody is told to reach it at an address of this machine.
        f"--advertise-address={LOOPBACK}",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={directory}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        # As strict as clusters are where owners are checked: who names one has to have a say in it.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        f"--audit-policy-file={_audit_policy(directory)}",
        f"--audit-log-path={directory / _AUDIT}",
    ]


def _audit_policy(directory: Path) -> Path:
    """What is written down: who asked for what, of all accounts but those of the controllers."""
    rules = [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ]
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}
    file = directory / "audit-policy.yaml"
    text = json.dumps({**policy, "omitStages": ["RequestReceived"]})  # JSON is YAML
    file.write_text(text, encoding="utf-8")
    return file


def _controller_manager(program: Path, directory: Path, port: int) -> list[str]:
    return [
        str(program),
        f"--controllers={','.join(_CONTROLLERS)}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        f"--cert-dir={directory}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        # Its own restraint would be what tests with hundreds of objects measure.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def _admin(directory: Path, authority: Authority, url: str) -> Path:
    pair = authority.client("admin", ["system:masters"])
    return _certificate_kubeconfig(directory / "admin.kubeconfig", authority, url, pair)


def _manager(directory: Path, authority: Authority, url: str) -> Path:
    pair = authority.client("system:kube-controller-manager")
    return _certificate_kubeconfig(directory / "manager.kubeconfig", authority, url, pair)


def _certificate_kubeconfig(file: Path, authority: Authority, url: str, pair: Pair) -> Path:
    user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
    return _write_kubeconfig(file, url, authority.certificate, user, "default")


def _write_kubeconfig(
    file: Path, url: str, ca: Path, user: Mapping[str, str], namespace: str
) -> Path:
    cluster = {"server": url, "certificate-authority": str(ca)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [
            {
                "name": "test",
                "context": {"cluster": "test", "user": "test", "namespace": namespace},
            }
        ],
        "current-context": "test",
    }
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    file.chmod(0o600)
    return file


def _controllers_work(cluster: Cluster) -> bool:
    """Whether the first namespace has what two of the controllers put into it."""
    arguments = ["get", "serviceaccount/default", "configmap/kube-root-ca.crt"]
    return cluster.try_kubectl(*arguments, "--namespace", "default").returncode == 0


def _next_log(directory: Path, name: str) -> Path:
    """A log for each time that the program starts."""
    return directory / f"{name}-{len(list(directory.glob(f'{name}-*.log'))) + 1}.log"


def _ports(count: int) -> Sequence[int]:
    """Free ports, no two of them the same."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return tuple(found)
