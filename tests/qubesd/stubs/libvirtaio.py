"""Keeps the event loop for libvirt.py."""

LOOP = None


def virEventRegisterAsyncIOImpl(loop):
    global LOOP
    LOOP = loop
