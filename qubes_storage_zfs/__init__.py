# SPDX-License-Identifier: BSD-2-Clause
"""Qubes OS storage pools on ZFS volumes.

qubesd imports every storage driver when it starts, and exits if one import
fails.  So this module imports without ZFS and pyzfs.  The pool classes are
imported at their first use, because the command line tools import this package
without qubesd's modules.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver.encrypted import ZfsEncryptedPool
    from .driver.zvol import ZfsZvolPool

__all__ = ["ZfsEncryptedPool", "ZfsZvolPool"]

#: class -> its module and the name of its driver in qubes.xml
_POOLS = {
    "ZfsZvolPool": ("driver.zvol", "zfs_zvol"),
    "ZfsEncryptedPool": ("driver.encrypted", "zfs_encrypted"),
}


def __getattr__(name: str) -> Any:
    """Import a pool class at its first use.

    :return: the class, or a placeholder if its module cannot be imported
    :raises AttributeError: if this package has no pool class *name*
    """
    if name not in _POOLS:
        raise AttributeError(name)
    module, driver = _POOLS[name]
    try:
        return getattr(importlib.import_module(f".{module}", __name__), name)
    except Exception as exc:  # qubesd exits on any exception here
        placeholder = importlib.import_module(".driver.placeholder", __name__)
        return placeholder.pool_class(driver, exc)
