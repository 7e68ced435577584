"""What kinds of types the schema is made of, and what the keys of a section are.

Shared by everything that goes through the schema's classes: reading, writing, describing.
"""

from __future__ import annotations

from typing import Any, get_origin

import attrs

from kars_router.config.addresses import Address
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import NO_KEY, key_of


def is_section(kind: Any) -> bool:
    """Whether a type is a mapping with keys of its own."""
    return isinstance(kind, type) and attrs.has(kind) and kind is not Address


def is_map(kind: Any) -> bool:
    """Whether a type is a mapping with any keys."""
    return get_origin(kind) is FrozenMap


def is_tuple(kind: Any) -> bool:
    """Whether a type is a list."""
    return get_origin(kind) is tuple


def fields_by_key(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The fields of a section by their keys; types keep their marks."""
    # `Annotated` is an extra, so resolved annotations have it.
    return {
        key_of(each.name): each
        for each in attrs.fields(attrs.resolve_types(cls))
        if each.metadata != NO_KEY
    }


def takes_further_keys(cls: type[Any]) -> bool:
    """Whether keys that a section does not know are left alone, as they are somebody else's."""
    return bool(getattr(cls, "further_keys", False))
