"""Output whose reader may go away: `fit … | head -1` ends the reader, a closed window the terminal."""

from __future__ import annotations

import errno
import io
import sys
from contextlib import suppress
from typing import Any

GONE = (errno.EPIPE, errno.EIO)


class _Unbreakable(io.FileIO):
    """A file that drops what it is given once its reader has gone, instead of an error that would end training."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Makes the standard streams of this process drop their output once their reader has gone.

    Otherwise every `print` would raise, and Python would end with status 120 because the last output is lost.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue  # something else has been put in its place, as in tests
        with suppress(OSError, ValueError):
            stream.flush()
            raw = _Unbreakable(stream.fileno(), "w", closefd=False)
            replaced = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=stream.line_buffering
            )
            setattr(sys, name, replaced)
            setattr(sys, f"__{name}__", replaced)
