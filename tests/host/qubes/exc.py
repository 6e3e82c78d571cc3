# SPDX-License-Identifier: BSD-2-Clause
"""Exceptions of the storage code, its drivers and the Admin API.

A QubesException and a ProtocolError reach the user as text; anything else
reaches the user as an empty response.
"""


class QubesException(Exception):
    """An error with a text for the user."""


class ProtocolError(AssertionError):
    """The client broke the protocol."""


class QubesVMNotFoundError(QubesException, KeyError):
    """No qube has this name."""

    def __init__(self, vmname):
        super().__init__(f"No such domain: {vmname!r}")
        self.vmname = vmname

    def __str__(self):
        return QubesException.__str__(self)


class QubesVMAlreadyExistsError(QubesException):
    """The name of a new qube is taken."""


class QubesVMError(QubesException):
    """An error of the qube *vm*."""

    def __init__(self, vm, msg):
        super().__init__(msg)
        self.vm = vm


class QubesVMInUseError(QubesVMError):
    """The qube cannot be removed."""

    def __init__(self, vm, msg=None):
        super().__init__(vm, msg or f"Domain is in use: {vm.name!r}")


class QubesVMNotStartedError(QubesVMError):
    """The qube should be running or paused, but is halted."""

    def __init__(self, vm, msg=None):
        super().__init__(vm, msg or f"Domain is powered off: {vm.name!r}")


class QubesVMNotRunningError(QubesVMNotStartedError):
    """The qube should be running, but is halted or paused."""

    def __init__(self, vm, msg=None):
        super().__init__(vm, msg or f"Domain is not running: {vm.name!r}")


class QubesVMNotHaltedError(QubesVMError):
    """The qube should be halted."""

    def __init__(self, vm, msg=None):
        super().__init__(vm, msg or f"Domain is not powered off: {vm.name!r}")


class QubesPoolInUseError(QubesException):
    """The pool has volumes of qubes or is a default pool."""

    def __init__(self, pool_name, msg=None):
        super().__init__(msg or f"Storage pool is in use: {pool_name!r}")


class QubesValueError(QubesException, ValueError):
    """A value is invalid or out of bounds."""


class StoragePoolException(QubesException):
    """Any error of a storage driver."""


class QubesVolumeRevisionNotFoundError(KeyError):
    """The volume has no such revision."""


class QubesPoolNotFoundError(KeyError):
    """There is no such pool."""


class QubesVolumeNotFoundError(KeyError):
    """There is no such volume."""
