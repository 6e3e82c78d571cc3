"""Qubes OS storage pools on ZFS volumes.

Importable where neither ZFS nor pyzfs is installed: qubesd imports every
driver, and dies if one does not import.  The pools are imported when they are
asked for, so that what speaks to ZFS alone does not import qubesd's modules.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encrypted import ZfsEncryptedPool
    from .pool import ZfsZvolPool

__all__ = ["ZfsEncryptedPool", "ZfsZvolPool"]


def __getattr__(name: str) -> Any:
    if name == "ZfsZvolPool":
        from .pool import ZfsZvolPool

        return ZfsZvolPool
    if name == "ZfsEncryptedPool":
        from .encrypted import ZfsEncryptedPool

        return ZfsEncryptedPool
    raise AttributeError(name)
