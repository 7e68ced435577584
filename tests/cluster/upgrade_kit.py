"""Releases to upgrade: a small chart in any version, Helm, and somebody to run its pods.

Owns `Scene`, one release in one namespace. The chart is called kars-operator, as the real one is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, frozen
from cluster_assets import find, wanted_kubernetes
from peers import missing

from cluster.harness import Cluster
from kars_router.kube import Kube, NotFoundError
from kars_router.kube import resources as kinds

RELEASE: Final = "kars-operator"
PATIENCE: Final = 60.0
# Kinds that are looked at to see that nothing has changed.
EVERYTHING: Final = (
    "configmaps,deployments,roles,secrets,services,serviceaccounts,statefulsets,networkpolicies"
)

WORKLOAD: Final = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: app
  annotations: {example.com/team: one}
  labels: {app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      initContainers:
        - name: first
          image: registry.example.com/first:1
          env:
            - {name: SPEED, value: {{ .Values.speed | quote }}}
      containers:
        - name: main
          image: {{ .Values.image }}
          env:
            - {name: LEVEL, value: {{ .Values.level | quote }}}
            - {name: SPEED, value: {{ .Values.speed | quote }}}
            - name: PLACE
              valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
"""
OTHERS: Final = """
apiVersion: v1
kind: Service
metadata: {name: app}
spec:
  selector: {app: app}
  ports:
    - {name: web, protocol: TCP, port: 80, targetPort: 8080}
    - {name: metrics, protocol: TCP, port: 9090, targetPort: 9090}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: {{ .Values.level | quote }}, other.key: fixed}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {key: {{ .Values.secret | quote }}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: app}
rules:
  - {apiGroups: [""], resources: [pods], verbs: [get]}
"""
TEMPLATES: Final = {"workload.yaml": WORKLOAD, "others.yaml": OTHERS}
VALUES: Final = {
    "replicas": 1,
    "image": "registry.example.com/app:1",
    "level": "info",
    "speed": "slow",
    "secret": "first",
}


def write_chart(
    directory: Path,
    version: str,
    *,
    templates: Mapping[str, str] = TEMPLATES,
    crds: Mapping[str, str] | None = None,
    name: str = RELEASE,
    **values: Any,
) -> Path:
    """Writes a chart of one version; its directory."""
    chart = directory / f"{name}-{version}"
    shutil.rmtree(chart, ignore_errors=True)
    described = {"apiVersion": "v2", "name": name, "version": version, "appVersion": version}
    texts = {
        "Chart.yaml": json.dumps(described),  # JSON is YAML
        "values.yaml": json.dumps({**VALUES, **values}),
        **{f"templates/{file}": text for file, text in templates.items()},
        **{f"crds/{file}": text for file, text in (crds or {}).items()},
    }
    for file, text in texts.items():
        (chart / file).parent.mkdir(parents=True, exist_ok=True)
        (chart / file).write_text(text, encoding="utf-8")
    return chart


@frozen
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def commands(self) -> list[str]:
        """The commands for kubectl that were printed."""
        return re.findall(r"^ {2}(kubectl .*)$", self.out, re.MULTILINE)


@define
class Scene:
    """One release in a namespace of its own."""

    cluster: Cluster
    namespace: str
    directory: Path
    release: str = RELEASE

    def environment(self) -> dict[str, str]:
        """Helm and kubectl are on PATH."""
        programs = [find(name, wanted_kubernetes()) for name in ("helm", "kubectl")]
        if None in programs:
            missing("no helm: `python tools/cluster_assets.py helm` gets it")
        places = [str(each.parent) for each in programs if each is not None]
        return {
            **self.cluster.environment(),
            "HOME": str(self.directory),
            "PATH": os.pathsep.join([*places, os.environ["PATH"]]),
        }

    def chart(self, version: str, **more: Any) -> Path:
        """A chart; see `write_chart`."""
        return write_chart(self.directory, version, **more)

    def run(self, *command: str | Path) -> Done:
        """Runs a program, whatever comes of it."""
        done = subprocess.run(
            [str(each) for each in command],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def helm(self, *words: str | Path) -> str:
        """Runs Helm; fails the test if it fails."""
        done = self.run("helm", *words, "--namespace", self.namespace)
        assert done.code == 0, done.err
        return done.out

    def kubectl(self, *words: str) -> str:
        """Runs kubectl in the namespace; fails the test if it fails."""
        return self.cluster.kubectl(*words, "--namespace", self.namespace)

    def install(self, chart: Path, *options: str) -> None:
        """Installs the release."""
        self.helm("install", self.release, chart, *options)

    def kars(self, chart: Path | None, *options: str, namespace: str | None = None) -> Done:
        """Runs `kars upgrade`."""
        where = ["--namespace", namespace or self.namespace, "--release", self.release]
        which = [] if chart is None else ["--chart", str(chart)]
        done = self.run(*kars_words(*which, *where, *options))
        assert "Traceback" not in done.err
        return done

    def plan(self, chart: Path, *options: str) -> dict[str, Any]:
        """What `kars upgrade --dry-run` says, as data."""
        done = self.kars(chart, "--dry-run", "-o", "json", *options)
        found: dict[str, Any] = json.loads(done.out)
        assert (done.code == 1) == found["blocked"], done.err
        return found

    def follow(self, commands: list[str]) -> None:
        """Runs commands as a user would paste them."""
        for each in commands:
            done = self.run("sh", "-c", each)
            assert done.code == 0, done.err

    def versions(self) -> dict[str, object]:
        """What tells whether anything in the namespace has changed.

        That is the `resourceVersion`; of a Deployment, whose status a controller writes whenever
        it likes, all but the status.
        """
        found = self.kubectl("get", EVERYTHING, "--output", "json", "--show-managed-fields")
        return {
            f"{each['kind']}/{each['metadata']['name']}": _version(each)
            for each in json.loads(found)["items"]
        }

    def get(self, kind: str, name: str = "app") -> dict[str, Any]:
        """One object of the namespace."""
        return self.cluster.get(kind, name, self.namespace)

    def history(self) -> list[tuple[int, str, str]]:
        """The revisions: number, status and chart."""
        listed = json.loads(self.helm("history", self.release, "--output", "json"))
        return [(each["revision"], each["status"], each["chart"]) for each in listed]

    def interrupt_helm(self, *words: str | Path) -> None:
        """Has Helm begin something, and ends it for good once it has."""
        before = len(self._revisions())
        with subprocess.Popen(
            ["helm", *(str(each) for each in words), "--namespace", self.namespace],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            while len(self._revisions()) == before:
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)

    def _revisions(self) -> list[str]:
        found = self.kubectl("get", "secrets", "--output", "name", "--selector", "owner=helm")
        return found.split()


def _version(manifest: dict[str, Any]) -> object:
    metadata = manifest["metadata"]
    if manifest["kind"] != "Deployment":
        return metadata["resourceVersion"]
    managed = [each for each in metadata["managedFields"] if each.get("subresource") != "status"]
    kept = ("annotations", "generation", "labels", "uid")
    return manifest["spec"], managed, [metadata.get(name) for name in kept]


def kars_words(*words: str) -> list[str]:
    """The command `kars upgrade`."""
    return [sys.executable, "-m", "kars_router", "upgrade", *words]


async def run_pods(
    kube: Kube, namespace: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Does what kubelets would: pods become ready, but those of an image called broken."""
    task_status.started()
    while True:
        for pod in (await kube.list(kinds.PODS, namespace)).items:
            if not pod["metadata"].get("deletionTimestamp") and not pod["status"].get("conditions"):
                name = pod["metadata"]["name"]
                status = {"status": pod_status(pod)}
                with contextlib.suppress(NotFoundError):  # gone meanwhile
                    await kube.patch(kinds.PODS, name, namespace, status, subresource="status")
        await trio.sleep(0.1)


def pod_status(pod: Mapping[str, Any]) -> dict[str, Any]:
    """What a kubelet says of a pod."""
    container = pod["spec"]["containers"][0]
    broken = "broken" in container["image"]
    state: dict[str, Any] = {"running": {"startedAt": "2030-01-01T00:00:00Z"}}
    if broken:
        said = f'Back-off pulling image "{container["image"]}"'
        state = {"waiting": {"reason": "ImagePullBackOff", "message": said}}
    ready = "False" if broken else "True"
    return {
        "phase": "Pending" if broken else "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": ready, "lastTransitionTime": "2030-01-01T00:00:00Z"},
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": not broken,
                "restartCount": 0,
                "state": state,
            }
        ],
    }
