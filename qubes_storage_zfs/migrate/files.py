# SPDX-License-Identifier: BSD-2-Clause
"""Write files in dom0 safely, in directories that other users can write to.

qubes.xml is in a directory that the group ``qubes`` can write to.  So no
function follows a symlink in the last component of a path.  A new file gets a
random name, or is only created if the name does not exist.  When a function
returns, its data is on disk.  After a crash, a file has the old or the new
content.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def read(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the content and the status of the regular file *path*.

    :raises OSError: if it cannot be read, or is a symlink or no regular file
    """
    with os.fdopen(os.open(path, _READ), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read(), status


def _create(
    folder: int, name: str, data: bytes, like: os.stat_result | None
) -> None:
    """Write a file that does not exist yet, and wait until it is on disk."""
    opened = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(opened, "wb") as file:
            file.write(data)
            if like is not None:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise


def create_beside(path: Path, data: bytes, like: os.stat_result) -> Path:
    """Write *data* to the new file *path*, or to path-1, path-2 and so on.

    :param like: the status whose owner and mode the file gets
    :return: the first of these names that did not exist
    :raises OSError: if it cannot be written
    """
    with _folder(path.parent) as folder:
        for number in range(100):
            name = f"{path.name}-{number}" if number else path.name
            with contextlib.suppress(FileExistsError):
                _create(folder, name, data, like)
                os.fsync(folder)
                return path.with_name(name)
    raise FileExistsError(
        errno.EEXIST,
        "100 such files exist already; delete some of them",
        str(path),
    )


def replace(
    path: Path, data: bytes, like: os.stat_result | None = None
) -> None:
    """Replace the file *path* atomically, or create it.

    :param like: the status whose owner and mode the file gets; None: only root
        can read and write it
    :raises OSError: if it cannot be written
    """
    made = f".{path.name[:200]}-{secrets.token_hex(16)}"
    with _folder(path.parent) as folder:
        _create(folder, made, data, like)
        try:
            os.replace(made, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(made, dir_fd=folder)
            raise
        os.fsync(folder)


def remove(path: Path) -> None:
    """Delete the file *path*, if it exists.

    :raises OSError: if it cannot be deleted
    """
    with contextlib.suppress(FileNotFoundError):
        with _folder(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)
            os.fsync(folder)


def private_folder(path: Path) -> None:
    """Create the directory *path*, or check that only root can write to it.

    :raises OSError: if it is a symlink, or another user can write to it
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise OSError(
                errno.ENOTDIR, "it is not a folder", str(path)
            ) from None
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            why = "another user than root can write to it"
            raise OSError(errno.EPERM, why, str(path)) from None
    else:
        with _folder(path.parent) as above:
            os.fsync(above)
