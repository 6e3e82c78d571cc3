# SPDX-License-Identifier: BSD-2-Clause
"""Qubes OS storage pools on ZFS volumes.

Importable where neither ZFS nor pyzfs is installed: qubesd imports every
driver, and dies if one does not import.  The pools are imported when they are
asked for, so that what speaks to ZFS alone does not import qubesd's modules.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver.encrypted import ZfsEncryptedPool
    from .driver.pool import ZfsZvolPool

__all__ = ["ZfsEncryptedPool", "ZfsZvolPool"]

#: class -> its module, and the driver that it is
_POOLS = {
    "ZfsZvolPool": ("driver.pool", "zfs_zvol"),
    "ZfsEncryptedPool": ("driver.encrypted", "zfs_encrypted"),
}


def __getattr__(name: str) -> Any:
    if name not in _POOLS:
        raise AttributeError(name)
    module, driver = _POOLS[name]
    try:
        return getattr(importlib.import_module(f".{module}", __name__), name)
    except Exception as exc:  # whatever it is, qubesd must live
        placeholder = importlib.import_module(".driver.placeholder", __name__)
        return placeholder.pool_class(driver, exc)
