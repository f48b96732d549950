"""One process at a time in a folder: a lock that ends with its process, however that ends.

The lock is a POSIX record lock (`fcntl.lockf`) on the file `.lock`. The kernel drops it when the process exits, also
by SIGKILL, and forked processes do not inherit it: it is never stale, even if the file is left behind. On a network
disk it holds between hosts if the file system has such locks: NFS 4, NFS 3 with its lock daemon, Lustre with
`-o flock`, GPFS, CephFS. Where it has none, a warning says so. If a host dies, the file server drops its locks when
their lease ends, on NFS 4 after 90 s.
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
        self._owner = os.getpid()
        self._descriptor: int | None = _lock(self.path, who, field)
        while not _is_current(self.path, self._descriptor):  # the one before removed it between `open` and the lock
            os.close(self._descriptor)
            self._descriptor = _lock(self.path, who, field)
        _held.add((self._owner, *_file(os.fstat(self._descriptor))))
        with suppress(OSError):  # a full disk: the lock holds without it
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {self._owner} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Ends the lock and removes its file; does nothing in a forked process, which does not have it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and self._owner == os.getpid():
            _held.discard((self._owner, *_file(os.fstat(descriptor))))
            with suppress(OSError):
                self.path.unlink()
            os.close(descriptor)


def _lock(path: Path, who: str, field: str) -> int:
    """Opens the file and locks it; returns its descriptor."""
    with suppress(FileNotFoundError):
        if (os.getpid(), *_file(os.stat(path))) in _held:  # to open and close it again would end the lock
            raise _refusal(path, who, field, f"process {os.getpid()} on {socket.gethostname()}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, f"{NAME} is not a regular file")
        _take(descriptor, path, who, field)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take(descriptor: int, path: Path, who: str, field: str) -> None:
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise _refusal(path, who, field, os.pread(descriptor, 200, 0).decode(errors="replace")) from error
        reason = f"the file system of {str(path.parent)!r} has no locks ({error.strerror})"
        print(f"warning: {reason}: do not start a second {who} in it", file=sys.stderr, flush=True)


def _refusal(path: Path, who: str, field: str, text: str) -> UserError:
    """The error that names the owner, if the text in the file is one that this module has written."""
    owner = OWNER.fullmatch(text.strip())
    where = f"{str(path.parent)!r}{f' ({owner[0]})' if owner else ''}"
    return UserError(f"{field}: another {who} is running in {where}; wait until it ends, or give another folder")


def _file(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_current(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one with that name."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False
