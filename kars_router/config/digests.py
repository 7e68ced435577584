"""Digests of what is configured, the same wherever they are computed.

The router says which policies it enforces by naming their digests; who wrote a policy computes the
same one and compares.
"""

from __future__ import annotations

import hashlib

import msgspec

from kars_router.config.converter import to_plain


def digest_of(section: object) -> str:
    """The digest of a section of the configuration, or of a resource's spec.

    It covers every key, defaults included, so spelling and order make no difference. Secrets are
    hidden before, so that a digest gives nothing away.

    Args:
        section: a structured section.

    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    return digest_of_plain(to_plain(section))


def digest_of_plain(value: object) -> str:
    """The digest of plain data; the order of keys makes no difference."""
    encoded = msgspec.json.encode(value, order="deterministic")
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"
