"""tools/cluster_assets.py: where it looks, in which order, and what it says when it cannot help.

Programs and package clients are small scripts on a PATH that holds nothing else.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import cluster_assets
import pytest
from attrs import frozen


@frozen
class Machine:
    """A PATH, a cache and a directory of given programs, all empty at first."""

    path: Path
    cache: Path
    given: Path

    def program(self, where: Path, name: str, body: str) -> Path:
        where.mkdir(parents=True, exist_ok=True)
        file = where / name
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)
        return file

    def says(self, where: Path, name: str, text: str) -> Path:
        return self.program(where, name, f"echo {shlex.quote(text)}")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path / "bin", tmp_path / "cache", tmp_path / "given")
    found.path.mkdir()
    for name in ("sh", "cat", "ln", "mkdir"):
        real = shutil.which(name)
        assert real is not None
        (found.path / name).symlink_to(real)
    monkeypatch.setenv("PATH", str(found.path))
    monkeypatch.setenv("KARS_CLUSTER_ASSETS", str(found.cache))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return found


OURS = cluster_assets.KUBERNETES
API_SERVER = f"Kubernetes v{OURS}"


class TestFinding:
    def test_nothing_is_anywhere(
        self, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cluster_assets.main(["--find", "etcd", "kubectl"]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err == "etcd is not there\nkubectl is not there\n"
        assert not machine.cache.exists()

    def test_the_path_comes_before_the_cache(self, machine: Machine) -> None:
        kept = cluster_assets.kept("kube-apiserver", OURS)
        machine.says(kept.parent, kept.name, API_SERVER)
        assert cluster_assets.find("kube-apiserver", OURS) == kept
        on_path = machine.says(machine.path, "kube-apiserver", API_SERVER)
        assert cluster_assets.find("kube-apiserver", OURS) == on_path

    def test_a_version_on_the_path_that_does_not_fit_is_passed_over(self, machine: Machine) -> None:
        machine.says(machine.path, "kubectl", "Client Version: v1.20.2")
        machine.says(machine.path, "etcd", "etcd Version: 3.3.25")
        machine.program(machine.path, "helm", "exit 1")
        for name in ("kubectl", "etcd", "helm"):
            assert cluster_assets.find(name, OURS) is None

    def test_given_programs_come_first_whatever_their_version(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(machine.given))
        machine.says(machine.path, "kube-apiserver", API_SERVER)
        given = machine.says(machine.given, "kube-apiserver", "Kubernetes v1.31.0")
        assert cluster_assets.find("kube-apiserver", OURS) == given
        # What is not given has to belong to it.
        assert cluster_assets.wanted_kubernetes() == "1.31.0"
        assert cluster_assets.kept("kubectl", "1.31.0").parent.name == "kubernetes-1.31.0"

    def test_without_a_given_server_the_version_is_ours(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(machine.given))
        assert cluster_assets.wanted_kubernetes() == OURS

    @pytest.mark.parametrize(
        ("name", "found", "fitting"),
        [
            ("etcd", "3.3.25", False),
            ("etcd", "3.4.23", True),
            ("etcd", "3.10.0", True),
            ("helm", "3.20.0", False),
            ("helm", "4.0.1", True),
            ("kubectl", "1.31.9", True),
            ("kubectl", "1.32.0", False),
            ("kube-controller-manager", "1.30.0", False),
        ],
    )
    def test_what_fits(self, name: str, found: str, fitting: bool) -> None:
        assert cluster_assets.fits(name, found, "1.31.0") is fitting

    def test_the_usual_cache_is_the_users(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KARS_CLUSTER_ASSETS", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cluster_assets.cache() == Path("/somewhere/kars-router/cluster")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/home/somebody")
        assert cluster_assets.cache() == Path("/home/somebody/.cache/kars-router/cluster")


class TestMaking:
    def reason(self, capsys: pytest.CaptureFixture[str], *names: str) -> str:
        """The last line on stderr, which says why a program cannot be had."""
        assert cluster_assets.main(names) == 3
        return capsys.readouterr().err.splitlines()[-1]

    def test_without_package_clients(
        self, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.reason(capsys, "etcd") == (
            "etcd cannot be had: without apt-get and dpkg-deb there is no package etcd-server"
        )
        assert self.reason(capsys, "kubectl", "helm") == (
            "kubectl, helm cannot be had: go is not installed, and it takes a build from Go modules"
        )

    def test_one_that_cannot_be_had_does_not_hide_the_others(
        self, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        here = machine.says(machine.path, "etcd", "etcd Version: 3.5.1")
        assert cluster_assets.main(["kubectl", "etcd"]) == 3
        assert capsys.readouterr().out == f"etcd {here}\n"

    def test_an_old_go(self, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
        machine.says(machine.path, "go", "go version go1.19.8 linux/amd64")
        assert "go 1.19 is too old" in self.reason(capsys, "kubectl")

    def test_a_build_that_fails(self, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
        machine.program(
            machine.path,
            "go",
            '[ "$1" = version ] && echo go version go1.26.0 linux/amd64 && exit\n'
            "echo a long story >&2; echo module lookup disabled >&2; exit 1",
        )
        assert self.reason(capsys, "kubectl") == (
            "kubectl cannot be had: go mod failed: module lookup disabled"
        )
        assert not cluster_assets.kept("kubectl", OURS).exists()
        assert list(machine.cache.glob("making-*")) == []

    def test_etcd_is_unpacked_and_not_installed(
        self, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        machine.program(machine.path, "apt-get", "echo package >etcd-server_3.5.16_amd64.deb")
        etcd = machine.says(machine.given, "etcd", "etcd Version: 3.5.16")
        unpack = f'mkdir -p "$3/usr/bin" && ln -s {etcd} "$3/usr/bin/etcd"'
        machine.program(machine.path, "dpkg-deb", unpack)
        assert cluster_assets.main(["etcd"]) == 0
        kept = cluster_assets.kept("etcd", OURS)
        assert capsys.readouterr().out == f"etcd {kept}\n"
        assert list(machine.cache.glob("making-*")) == []

    def test_kubernetes_is_built_with_its_own_staging_modules(
        self, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        module = machine.given / "kubernetes"
        module.mkdir(parents=True)
        (module / "go.mod").write_text(
            "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n"
            "\texample.com/other v1.2.3\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.140.0\n)\n",
            encoding="utf-8",
        )
        (module / "go.sum").write_text("sums\n", encoding="utf-8")
        record = machine.given / "record"
        answer = f'{{"GoMod": "{module}/go.mod", "Dir": "{module}"}}'
        built = machine.says(machine.given, "built", API_SERVER)
        machine.program(
            machine.path,
            "go",
            f"""
            case "$1" in
                version) echo go version go1.26.0 linux/amd64 ;;
                mod) echo '{answer}' ;;
                build)
                    cat go.mod go.sum >{record}
                    echo "$@" >>{record}
                    ln -s {built} kubectl
                    ln -s {built} kube-apiserver ;;
            esac""",
        )
        assert cluster_assets.main(["kubectl", "kube-apiserver"]) == 0
        text = record.read_text(encoding="utf-8")
        release = f"v0.{OURS.partition('.')[2]}"
        assert f"k8s.io/kubernetes v{OURS}\n" in text
        assert [line for line in text.splitlines() if line.startswith("replace")] == [
            f"replace k8s.io/api => k8s.io/api {release}"
        ]
        assert "go 1.26.0\n" in text
        assert "sums\n" in text
        assert f"gitVersion=v{OURS} " in text
        assert text.rstrip().endswith("cmd/kubectl k8s.io/kubernetes/cmd/kube-apiserver")
        assert cluster_assets.kept("kubectl", OURS).exists()

    def test_an_unknown_program(self, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cluster_assets.main(["kubelet"])
        assert ended.value.code == 2
        assert "kubelet is none of" in capsys.readouterr().err
