"""The audit journal: an append-only, hash-chained record of every call and its fate.

`Journal` is what the router writes to; `verify` is what `kars audit` reads with. docs/audit.md
says what is recorded and what the chain proves.
"""

from kars_router.audit.journal import Journal
from kars_router.errors import JournalError

__all__ = ["Journal", "JournalError"]
