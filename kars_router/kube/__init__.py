"""A client of the Kubernetes API: objects as plain data, over the project's own HTTP transport.

Owns how an API server is found, asked and understood. Must not know what any object means.
"""

from kars_router.kube.client import Kube, open_kube
from kars_router.kube.connection import Connection, connection_from
from kars_router.kube.errors import (
    AnswerError,
    ApiError,
    Cause,
    ConflictError,
    ForbiddenError,
    GoneError,
    KubeError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
)
from kars_router.kube.lists import Listing
from kars_router.kube.resources import Resource, resource_of
from kars_router.kube.watch import Event, Watch

__all__ = [
    "AnswerError",
    "ApiError",
    "Cause",
    "ConflictError",
    "Connection",
    "Event",
    "ForbiddenError",
    "GoneError",
    "Kube",
    "KubeError",
    "Listing",
    "NotFoundError",
    "Resource",
    "UnauthorizedError",
    "UnreachableError",
    "Watch",
    "connection_from",
    "open_kube",
    "resource_of",
]
