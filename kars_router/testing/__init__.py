"""The public test kit: peers and transports for testing what talks MCP.

Everything runs on Trio. With `AsgiBridge` there is no socket, so pytest-trio's
`autojump_clock` makes hours pass in milliseconds; with `serve` it is real HTTP on loopback.
See docs/testing-kit.md.
"""

from kars_router.testing._asgi import AsgiApp
from kars_router.testing._sessions import Session
from kars_router.testing._tools import Call, RpcError, ToolHandler
from kars_router.testing.agent import (
    HttpStatusError,
    NoAnswerError,
    PlainAgent,
    SessionGoneError,
    text_of,
)
from kars_router.testing.bridge import AsgiBridge
from kars_router.testing.faults import Fault, FaultPlan, Stage, each_operation
from kars_router.testing.governing import call_end, decide, governed_call, plugin_host
from kars_router.testing.heartbeat import HeartbeatServer
from kars_router.testing.replies import Happening, Received, Reply, Script
from kars_router.testing.serving import serve
from kars_router.testing.stateless_server import StatelessCall, StatelessServer

__all__ = [
    "AsgiApp",
    "AsgiBridge",
    "Call",
    "Fault",
    "FaultPlan",
    "Happening",
    "HeartbeatServer",
    "HttpStatusError",
    "NoAnswerError",
    "PlainAgent",
    "Received",
    "Reply",
    "RpcError",
    "Script",
    "Session",
    "SessionGoneError",
    "Stage",
    "StatelessCall",
    "StatelessServer",
    "ToolHandler",
    "call_end",
    "decide",
    "each_operation",
    "governed_call",
    "plugin_host",
    "serve",
    "text_of",
]
