"""Qubes OS storage pools on ZFS volumes.

Importable where neither ZFS nor pyzfs is installed: qubesd imports every
driver, and dies if one does not import.
"""

from .pool import ZfsZvolPool

__all__ = ["ZfsZvolPool"]
