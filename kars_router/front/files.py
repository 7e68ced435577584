"""Small files that say who may come in, read each time they are needed.

Looking at a file's times instead would miss a change within one tick of its clock, and a small
file is read as fast as it is looked at. Knows nothing of what is in them.
"""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen


@frozen
class WatchedFile:
    """A file.

    Attributes:
        path: where it is; symbolic links, as Kubernetes makes them, are followed anew each time.
        limit: most bytes that it may hold.
    """

    path: Path
    limit: int

    def read(self) -> bytes:
        """What is in it now. Blocks, for as long as a local disk does.

        Raises:
            OSError: it cannot be read.
            ValueError: it is too large.
        """
        # Not blocking, so that a pipe which somebody put there does not stop the router.
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = bytearray()
            while part := os.read(handle, self.limit + 1 - len(data)):
                data += part
        finally:
            os.close(handle)
        if len(data) > self.limit:
            raise ValueError(f"is larger than {self.limit} bytes")
        return bytes(data)
