# SPDX-License-Identifier: BSD-2-Clause
"""Nothing to register: the event loop calls libvirt.py directly."""


def virEventRegisterAsyncIOImpl(loop):
    pass
