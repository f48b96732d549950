"""One process at a time in a folder: a lock that ends with its process, however that ends.

The lock is a POSIX record lock (`fcntl.lockf`) on the file `.lock`. The kernel drops it when the process exits, also
by SIGKILL, and forked processes do not inherit it, so it is never stale. On a network disk it holds between hosts if
the file system has such locks: NFS 4, NFS 3 with its lock daemon, Lustre with `-o flock`, GPFS, CephFS. Where it has
none, a warning says so. If a host dies, the file server drops its locks when their lease ends, on NFS 4 after 90 s.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path

from pg_lightning.errors import UserError

NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
OWNER = re.compile(r"process \d{1,10} on [\w.-]{1,100}")

_held: set[tuple[int, int, int]] = set()  # process, device, inode: a process does not exclude itself


class FolderLock:
    """Holds a folder for this process until `release`, or the end of the process.

    Args:
        folder: it must exist.
        who: what holds it, for the messages, such as "fit".
        field: the option that named the folder, for the messages.

    Raises:
        UserError: if another process holds it.
        OSError: if the file `.lock` cannot be created, or is something else than a file.
    """

    def __init__(self, folder: Path, who: str, field: str) -> None:
        self.path = folder / NAME
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor: int | None = os.open(self.path, flags, 0o644)
        status = os.fstat(self._descriptor)
        self._key = os.getpid(), status.st_dev, status.st_ino
        try:
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, f"{NAME} is not a regular file")
            self._take(folder, who, field)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(self._key)

    def release(self) -> None:
        """Ends the lock; the file stays."""
        if self._descriptor is not None and self._key[0] == os.getpid():
            os.close(self._descriptor)
            _held.discard(self._key)
        self._descriptor = None

    def _take(self, folder: Path, who: str, field: str) -> None:
        import fcntl

        assert self._descriptor is not None
        try:
            if self._key in _held:
                raise BlockingIOError(errno.EAGAIN, "held by this process")
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                owner = OWNER.fullmatch(os.pread(self._descriptor, 200, 0).decode(errors="replace").strip())
                where = f"{str(folder)!r} ({owner[0]})" if owner else repr(str(folder))
                cure = "wait until it ends, or give another folder"
                raise UserError(f"{field}: another {who} is running in {where}; {cure}") from error
            print(
                f"warning: the file system of {str(folder)!r} has no locks ({error.strerror}): "
                f"do not start a second {who} in it",
                file=sys.stderr,
                flush=True,
            )
            return
        with suppress(OSError):  # a full disk: the lock holds without it
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
