"""Opening a device node while the kernel is at a loss."""

import errno
import os

import pytest

from qubes_storage_zfs.zfs import device


def failing(times, code):
    """os.open() that fails so often with *code*."""
    real, left = os.open, [times]

    def fake(path, flags, *more):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(code, "as told", path)
        return real(path, flags, *more)

    return fake


def test_a_lock_the_kernel_did_not_get_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(os, "open", failing(3, device.ERESTARTSYS))
    os.close(device.open_node("/dev/null", os.O_RDONLY))


@pytest.mark.parametrize("code", [device.ERESTARTSYS, errno.EIO])
def test_what_cannot_be_flushed_is_not_said_to_be(monkeypatch, code):
    """A commit after it would leave out what dom0 still has in memory."""
    monkeypatch.setattr(os, "open", failing(99, code))
    with pytest.raises(OSError) as caught:
        device.flush("tank/vm/work/private")
    assert caught.value.errno == code


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENXIO])
def test_what_has_no_device_has_nothing_to_flush(monkeypatch, code):
    monkeypatch.setattr(os, "open", failing(1, code))
    device.flush("tank/vm/work/private")
