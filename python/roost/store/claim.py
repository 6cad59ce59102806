"""Claiming a data directory: everything that must hold before SQLite may open the file in it.

A second server, a network file system, a directory that cannot be written and a file that is not ours are
each found here, before anything in the directory was changed, and said in one sentence.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from pathlib import Path

from .base import StoreError

STORE_FILE = "roost.db"
LOCK_FILE = "roost.lock"
RESERVE_FILE = "roost.reserve"
READERS_FILE = "roost.readers"

_MAGIC = b"SQLite format 3\0"

# File systems on which POSIX locks or the shared memory of a WAL cannot be trusted, as /proc/self/mountinfo
# names them. Plain "fuse" and "fuseblk" are left alone: most are local (ntfs-3g and the like).
_NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "glusterfs",
        "gfs",
        "gfs2",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "fuse.afp",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.cloudfuse",
        "fuse.blobfuse",
        "fuse.blobfuse2",
        "fuse.curlftpfs",
        "fuse.davfs",
        "fuse.davfs2",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.grpcfuse",
        "fuse.juicefs",
        "fuse.mfs",
        "fuse.mount-s3",
        "fuse.osxfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.seaweedfs",
        "fuse.sshfs",
        "fuse.vmhgfs-fuse",
        "fuse.weed",
    }
)
# statfs(2) numbers of the same, for systems without /proc. FUSE is not here: its number says nothing.
_NETWORK_MAGIC = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFE534D42: "smb2",
    0xFF534D42: "cifs",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x5346414F: "afs",
    0x0BD00BD0: "lustre",
}

# SQLite's lock bytes in the database file: a connection in WAL mode holds a read lock there while it is open.
_SHARED_FIRST = 0x40000000 + 2
_SHARED_SIZE = 510


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def network_file_system(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that holds `path` (absolute, resolved) if it is a network one.

    `mountinfo` is the text of /proc/self/mountinfo. The longest mount point wins, of equals the last.
    """
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        inside = str(path) == point or str(path).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), right.split(" ", 1)[0]
    return kind if kind in _NETWORK else None


def _statfs_network(path: Path) -> str | None:
    """As above by statfs(2), where /proc/self/mountinfo is absent; None if it cannot be told."""
    try:
        statfs = ctypes.CDLL(None, use_errno=True).statfs
    except (OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(256)
    if statfs(os.fsencode(path), buffer) != 0:
        return None
    # On 64-bit Linux f_type is a long; its low 32 bits are the number.
    (number,) = struct.unpack_from("=I", buffer.raw)
    return _NETWORK_MAGIC.get(number)


def _check_file_system(path: Path) -> None:
    try:
        kind = network_file_system(path, Path("/proc/self/mountinfo").read_text(errors="replace"))
    except OSError:
        kind = _statfs_network(path)
    if kind is not None:
        raise StoreError(
            "NETWORK_FS",
            f"{path} is on a network file system ({kind}), where locks and durability cannot be trusted: "
            "give --data-dir on a local disk.",
        )


def unwritable(path: Path, error: OSError) -> StoreError:
    """What to tell a person about an OSError while the store's files were being made or opened."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    return StoreError(
        "UNWRITABLE",
        f"Cannot write in {path} ({error.strerror or error}): make it writable for this user "
        "or choose another --data-dir.",
    )


def disk_full(path: Path) -> StoreError:
    """There is no room to create or open the store."""
    return StoreError("DISK_FULL", f"The disk that holds {path} is full: free some space there and start again.")


def check_room(store: Path, reserve: int, backup: bool) -> None:
    """A migration may write every table anew, into the log and then into the file: twice the size of the store; with a
    backup before it three times. Raises StoreError before anything is changed. `reserve`: bytes to be given up."""
    disk = os.statvfs(store.parent)
    size = sum(path.stat().st_size for path in (store, store.with_name(store.name + "-wal")) if path.exists())
    need, free = (3 if backup else 2) * size, disk.f_bavail * disk.f_frsize + reserve
    if free < need:
        less = " (a third of it for a backup before that, which migration_backups = 0 leaves out)" if backup else ""
        raise StoreError(
            "DISK_FULL",
            f"{store} must be brought to a newer version, for which {need >> 20} MiB may be needed beside it{less}, "
            f"and {free >> 20} MiB are free: make room there and start again.",
        )


def prepare_directory(path: Path) -> Path:
    """Create the data directory if need be (mode 0700) and return it resolved. Raises StoreError."""
    try:
        # The nearest parent that exists decides the file system, before anything is made on it.
        probe = path.absolute()
        while not probe.exists() and probe != probe.parent:
            probe = probe.parent
        if not probe.is_dir():
            raise StoreError("NOT_A_DIRECTORY", f"{probe} is not a directory: give --data-dir the path of a directory.")
        _check_file_system(probe.resolve())
        missing = [p for p in (path.absolute(), *path.absolute().parents) if not p.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)
            fsync_dir(directory.parent)
        return path.resolve(strict=True)
    except OSError as error:
        raise unwritable(path, error) from error


class Claim:
    """The lock on a data directory, held until `release` or the end of the process, however that comes."""

    def __init__(self, directory: Path) -> None:
        """Take the lock. StoreError LOCKED if another server has it, UNWRITABLE or DISK_FULL if it cannot be made."""
        path = directory / LOCK_FILE
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unwritable(directory, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            self.release()
            by = f" (process {holder})" if holder.isdigit() else ""
            raise StoreError(
                "LOCKED", f"Another Roost server{by} uses {directory}: stop it first, or give another --data-dir."
            ) from None
        except OSError as error:
            self.release()
            raise unwritable(directory, error) from error
        try:
            # Only for the message above: a lock file without a number works as well, so a full disk is no error.
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Give the directory up. Closing the descriptor drops the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def reader_mark(directory: Path) -> int | None:
    """Mark this process as one of Roost that only reads the store: it locks the byte of its number in a file that stays
    empty. The descriptor that holds the mark; None where none can be made, as on a disk that is mounted read-only."""
    path = directory / READERS_FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        owner = (directory / STORE_FILE).stat()
        if os.geteuid() == 0 and os.fstat(fd).st_uid != owner.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, os.getpid())
    except OSError:
        os.close(fd)
        return None
    return fd


def _is_reader(directory: Path, pid: int) -> bool:
    """Whether a process has marked itself as a reader of Roost."""
    try:
        fd = os.open(directory / READERS_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        query = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, pid, 1, 0)
        kind, _, _, _, holder = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_GETLK, query))
    finally:
        os.close(fd)
    return bool(kind != fcntl.F_UNLCK and holder == pid)


def check_file(path: Path, directory: Path) -> None:
    """Look at the store file before SQLite does; create it empty, mode 0600, if it is not there. Raises StoreError.

    No SQLite connection of this process may have the file open: closing the descriptor would drop its locks.
    """
    try:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            # SQLite gives the -wal and -shm files the mode of this one.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.fchmod(fd, 0o600)
            fsync_dir(directory)
        try:
            header = os.pread(fd, 100, 0)
            # A third-party process (a sqlite3 shell, a backup script) with the file open in WAL mode.
            query = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
            kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_GETLK, query))
        finally:
            os.close(fd)
    except IsADirectoryError:
        raise StoreError("NOT_OURS", f"{path} is a directory, not a store: choose another --data-dir.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError("NOT_OURS", f"{path} is a symbolic link, not a store: give its directory.") from None
        raise unwritable(directory, error) from error
    if header and (len(header) < 100 or not header.startswith(_MAGIC)):
        raise StoreError("NOT_OURS", f"{path} is not a SQLite database: choose another --data-dir or move it away.")
    # A backup must not keep a server from its start: it only reads.
    if kind != fcntl.F_UNLCK and not _is_reader(directory, pid):
        raise StoreError("LOCKED", f"Process {pid} has {path} open: close that program first, then start again.")
