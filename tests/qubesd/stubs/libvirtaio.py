"""libvirt.py here needs no help: it is called by the event loop."""


def virEventRegisterAsyncIOImpl(loop):
    pass
