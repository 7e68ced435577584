"""Find or make the programs of a real Kubernetes API server, for the cluster tests.

etcd, kube-apiserver, kube-controller-manager and kubectl are taken, one by one, from the first of:

- the directory that `KUBEBUILDER_ASSETS` names, whatever version stands there;
- PATH, if the version there fits (see `fits`);
- a cache: `KARS_CLUSTER_ASSETS`, or `kars-router/cluster` in the user's cache directory;
- a package client, which fills that cache: `apt-get` with the package etcd-server, of which only
  the program is unpacked (nothing is installed, no service starts), and `go` with the modules of
  Kubernetes, which have to be built (about five minutes on two cores, once).

No host is named here: both clients go where the user's settings send them.

Usage: cluster_assets.py [--find] [PROGRAM...]

Prints `PROGRAM PATH` for each. `--find` only looks and makes nothing. `helm` is made when it is
named. Exits with 3 if one cannot be had, and says why on stderr in a sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Versions that are built. The staging modules of Kubernetes 1.X.Y are released as 0.X.Y.
KUBERNETES = "1.37.2"
HELM = "4.3.2"
ETCD_OLDEST = (3, 4)

KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kubectl")
PROGRAMS = ("etcd", *KUBERNETES_PROGRAMS, "helm")
VERSION_COMMAND = {"kubectl": ("version", "--client"), "helm": ("version", "--short")}

# A build that takes longer waits for something that does not come. Some minutes of it are work, but
# it may run beside the tests, at the lowest priority.
SECONDS = 3600


class UnavailableError(Exception):
    """A program cannot be had. The message is the reason, in one sentence."""


def cache() -> Path:
    """Where programs are kept that this script made."""
    chosen = os.environ.get("KARS_CLUSTER_ASSETS")
    if chosen:
        return Path(chosen).resolve()
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(users).expanduser() / "kars-router" / "cluster"


def version(program: Path) -> str | None:
    """The version that `program` says it has, such as 1.37.2; None if it says none."""
    arguments = VERSION_COMMAND.get(program.name, ("--version",))
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv?(\d+(?:\.\d+)+)", done.stdout)
    return found[1] if found else None


def fits(name: str, found: str, kubernetes: str) -> bool:
    """Whether version `found` of a program on PATH goes with that version of Kubernetes.

    All parts of Kubernetes must be of one minor version, which is the strictest reading of what
    its project supports.
    """
    series = found.split(".")[:2]
    if name == "etcd":
        return tuple(map(int, series)) >= ETCD_OLDEST
    if name == "helm":
        return series[:1] == HELM.split(".")[:1]
    return series == kubernetes.split(".")[:2]


def wanted_kubernetes() -> str:
    """The version of Kubernetes to look for: that of a given API server, otherwise ours."""
    given = given_in_assets("kube-apiserver")
    return (given and version(given)) or KUBERNETES


def given_in_assets(name: str) -> Path | None:
    """The program in the directory that `KUBEBUILDER_ASSETS` names, if it is there."""
    directory = os.environ.get("KUBEBUILDER_ASSETS")
    found = shutil.which(name, path=directory) if directory else None
    return Path(found).absolute() if found else None


def kept(name: str, kubernetes: str) -> Path:
    """Where the cache has, or would have, the program."""
    if name == "etcd":
        return cache() / "etcd" / name
    return cache() / (f"helm-{HELM}" if name == "helm" else f"kubernetes-{kubernetes}") / name


def find(name: str, kubernetes: str) -> Path | None:
    """Where the program is, without making it; None if it is nowhere."""
    given = given_in_assets(name)
    if given is not None:
        return given
    on_path = shutil.which(name)
    if on_path is not None:
        there = version(Path(on_path))
        if there is not None and fits(name, there, kubernetes):
            return Path(on_path).absolute()
    made = kept(name, kubernetes)
    return made if os.access(made, os.X_OK) else None


def obtain(names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Find or make each program; what there is, and a reason for each that cannot be had."""
    kubernetes = wanted_kubernetes()
    reasons = []
    with only_one_at_a_time():
        lacking = [name for name in names if find(name, kubernetes) is None]
        for group in groups(lacking, kubernetes):
            try:
                make(group, kubernetes)
            except UnavailableError as reason:
                reasons.append(f"{', '.join(group)} cannot be had: {reason}")
    return {name: path for name in names if (path := find(name, kubernetes))}, reasons


def groups(lacking: Sequence[str], kubernetes: str) -> list[list[str]]:
    """What is made in one go: programs of the same version of Kubernetes share most of a build."""
    shared = {*KUBERNETES_PROGRAMS, *(["helm"] if kubernetes == KUBERNETES else [])}
    together = [name for name in lacking if name in shared]
    alone = [[name] for name in lacking if name not in shared]
    return [*alone, together] if together else alone


def make(group: Sequence[str], kubernetes: str) -> None:
    """Put the programs of one group into the cache. Raises UnavailableError."""
    # Inside the cache, so that a finished program appears in its place at once and whole.
    with tempfile.TemporaryDirectory(dir=cache(), prefix="making-") as scratch:
        if group[0] == "etcd":
            unpack_etcd(Path(scratch))
        else:
            build(group, kubernetes, Path(scratch))
        for name in group:
            made, target = Path(scratch) / name, kept(name, kubernetes)
            if version(made) is None:
                raise UnavailableError(f"what was made of {name} does not start")
            target.parent.mkdir(parents=True, exist_ok=True)
            made.replace(target)


def unpack_etcd(scratch: Path) -> None:
    """Get Debian's etcd-server and keep its program alone. Needs no rights."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError("without apt-get and dpkg-deb there is no package etcd-server")
    say("getting etcd from Debian's package etcd-server")
    command = ["apt-get", "download", "-qq", "etcd-server"]
    try:
        run(command, scratch)
    except UnavailableError:
        if os.geteuid() != 0:
            raise
        run(["apt-get", "update", "-qq"], scratch)
        run(command, scratch)
    (package,) = scratch.glob("etcd-server_*.deb")
    run(["dpkg-deb", "--extract", str(package), str(scratch / "files")], scratch)
    (scratch / "files" / "usr" / "bin" / "etcd").replace(scratch / "etcd")


def build(names: Sequence[str], kubernetes: str, scratch: Path) -> None:
    """Build programs in a module that does nothing but require theirs. Raises UnavailableError."""
    go = usable_go()
    say(f"building {', '.join(names)} (minutes, once)")
    module = scratch / "go.mod"
    module.write_text("module assets\n", encoding="utf-8")
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in names if name != "helm"]
    if packages:
        module.write_text(kubernetes_module(go, kubernetes, scratch), encoding="utf-8")
    if "helm" in names:
        theirs = f"helm.sh/helm/v{HELM.partition('.')[0]}"
        run([go, "get", f"{theirs}@v{HELM}"], scratch)
        packages.append(f"{theirs}/cmd/helm")
    run([go, "build", *build_flags(kubernetes), *packages], scratch)


def kubernetes_module(go: str, wanted: str, scratch: Path) -> str:
    """A go.mod that requires Kubernetes, whose go.sum is put into `scratch`.

    Its own go.mod points its staging modules at directories that the published module does not
    have, and a replacement counts in the main module only. So they are replaced here, by the
    releases that belong to it.
    """
    got = json.loads(run([go, "mod", "download", "-json", f"k8s.io/kubernetes@v{wanted}"], scratch))
    theirs = Path(got["GoMod"]).read_text(encoding="utf-8")
    shutil.copyfile(Path(got["Dir"]) / "go.sum", scratch / "go.sum")
    staging = sorted(set(re.findall(r"^\s+(k8s\.io/\S+) v0\.0\.0$", theirs, re.MULTILINE)))
    release = f"v0.{wanted.partition('.')[2]}"
    lines = ["module assets", *re.findall(r"^go \S+$", theirs, re.MULTILINE)]
    lines.append(f"require k8s.io/kubernetes v{wanted}")
    lines += [f"replace {name} => {name} {release}" for name in staging]
    return "\n".join(lines) + "\n"


def build_flags(wanted: str) -> list[str]:
    """What makes the build quick, and what tells the programs their version."""
    major, minor, _ = wanted.split(".")
    stamp = "k8s.io/component-base/version.git"
    stamped = {"Version": f"v{wanted}", "Major": major, "Minor": minor}
    linker = " ".join(["-s -w", *(f"-X {stamp}{name}={text}" for name, text in stamped.items())])
    # Without what only a debugger reads, and without inlining, compiler and linker have less to
    # write; and fast programs are of no use here.
    compiler = "-gcflags=all=-dwarf=false -l"
    return ["-mod=mod", "-trimpath", compiler, f"-ldflags={linker}", "-o=./"]


def usable_go() -> str:
    """The path of a go command that can fetch the toolchain that a module asks for."""
    go = shutil.which("go")
    if go is None:
        raise UnavailableError("go is not installed, and it takes a build from Go modules")
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go1\.(\d+)", said)
    if found and int(found[1]) < 21:
        raise UnavailableError(f"go 1.{found[1]} is too old; from 1.21 on it gets what it needs")
    return go


def run(command: Sequence[str], where: Path, **environment: str) -> str:
    """Run a package client; its stdout. Raises UnavailableError with the end of its stderr."""
    # Plain binaries that need no C compiler; and no workspace of the user's takes part.
    # Compilers that collect less garbage take a tenth less time, and some memory more.
    plain = {"CGO_ENABLED": "0", "GOWORK": "off", "GOGC": "800"}
    try:
        done = subprocess.run(
            command,
            cwd=where,
            env={**os.environ, **plain, **environment},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} was not done after {SECONDS} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UnavailableError(f"{Path(command[0]).name} {command[1]} failed: {last}")
    return done.stdout


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Let another run that makes the same things finish first."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """Tell whoever waits what it is that takes so long."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="programs of a real Kubernetes API server")
    parser.add_argument("--find", action="store_true", help="only look, make nothing")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(PROGRAMS))
    asked = parser.parse_args(arguments)
    names = asked.programs or PROGRAMS
    for name in names:
        if name not in PROGRAMS:
            parser.error(f"{name} is none of {', '.join(PROGRAMS)}")
    if asked.find:
        kubernetes = wanted_kubernetes()
        there = {name: path for name in names if (path := find(name, kubernetes))}
        reasons = [f"{name} is not there" for name in names if name not in there]
    else:
        there, reasons = obtain(names)
    for name, path in there.items():
        print(f"{name} {path}")
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 3 if reasons else 0


if __name__ == "__main__":
    os.nice(10)
    # Whoever ends this ends the build, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
