"""A real, small file system for tests of a full disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, size: int) -> Iterator[Path]:
    """An ext4 of `size` bytes, made and mounted in `directory`. Skips the test where that cannot be done."""
    image, mount = directory / "image", directory / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    try:
        subprocess.run(
            ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True, capture_output=True
        )
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, mkfs.ext4 and a loop device")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def free(path: Path) -> int:
    """Bytes that can still be written."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def ballast(path: Path, leave: int) -> None:
    """Take all room of the file system at `path` but `leave` bytes, with a file there that may exist."""
    with path.open("ab") as file, suppress(OSError):  # the last blocks may be the file system's own
        while free(path.parent) > leave:
            try:
                os.posix_fallocate(file.fileno(), path.stat().st_size, free(path.parent) - leave)
            except OSError:
                file.write(bytes(4096))
                file.flush()
