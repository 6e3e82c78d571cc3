# SPDX-License-Identifier: BSD-2-Clause
"""libvirt.py here needs no help: it is called by the event loop."""


def virEventRegisterAsyncIOImpl(loop):
    pass
