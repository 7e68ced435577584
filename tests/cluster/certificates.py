"""The keys and certificates of a cluster that lives as long as one test run."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from http_kit import certificate_builder
from peers import LOOPBACK

_HOSTS = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


@frozen
class Pair:
    """Files with a certificate and its key."""

    certificate: Path
    key: Path


@frozen
class Authority:
    """What signs all certificates of one cluster. Made by `new_authority`."""

    directory: Path
    certificate: Path
    _name: x509.Name
    _key: ec.EllipticCurvePrivateKey

    def server(self) -> Pair:
        """What the API server shows to its clients."""
        names = [x509.DNSName(host) for host in _HOSTS]
        address = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
        return self._issue("kube-apiserver", [], x509.SubjectAlternativeName([*names, address]))

    def client(self, user: str, groups: Sequence[str] = ()) -> Pair:
        """What `user`, a member of `groups`, shows to the API server."""
        return self._issue(user, groups, None)

    def _issue(
        self, name: str, groups: Sequence[str], names: x509.SubjectAlternativeName | None
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            certificate_builder(_name(name, groups), self._name, key, self._key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        stem = name.replace(":", "-")
        pair = Pair(self.directory / f"{stem}.crt", self.directory / f"{stem}.key")
        pair.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        pair.key.write_bytes(private_pem(key))
        return pair


def new_authority(directory: Path) -> Authority:
    """A new authority that keeps all its files in `directory`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("test cluster", [])
    certificate = (
        certificate_builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "ca.crt"
    file.write_bytes(_pem(certificate))
    return Authority(directory, file, name, key)


def signing_key(directory: Path) -> Path:
    """A file with the key that signs the tokens of service accounts."""
    file = directory / "accounts.key"
    file.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    return file


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as Kubernetes reads it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _name(name: str, groups: Sequence[str]) -> x509.Name:
    """Kubernetes takes the common name for the user and each organisation for a group."""
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
