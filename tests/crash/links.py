# SPDX-License-Identifier: BSD-2-Clause
"""Stand in for udev while thousands of zvols appear and disappear.

udev forks for each event.  Under emulation this takes most of the time of a
crash point.  Here a thread makes the same links from the kernel's events.  The
driver still waits for the link and asks the node for its name.  All other
tests use udev itself.
"""

import contextlib
import os
import socket
import subprocess
import threading
from pathlib import Path

from qubes_storage_zfs.zfs import devices

KOBJECT_UEVENT = 15  # linux/netlink.h
RCVBUFFORCE = 33  # asm-generic/socket.h
KERNEL_EVENTS = 1


class Links:
    """Make the links below /dev/zvol in a thread.  A context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM, KOBJECT_UEVENT
        )
        self._socket.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 64 << 20)
        self._of_node: dict[str, str] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Links":
        subprocess.run(["udevadm", "settle"], check=True)
        subprocess.run(["udevadm", "control", "--exit"], check=True)
        self._socket.bind((0, KERNEL_EVENTS))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        subprocess.run(
            ["/usr/lib/systemd/systemd-udevd", "--daemon"], check=True
        )

    def _listen(self) -> None:
        while True:
            try:
                event = self._socket.recv(65536).split(b"\0")
            except OSError:
                return
            action, _, path = event[0].decode().partition("@")
            name = path.rpartition("/")[2]
            if path.startswith("/devices/virtual/block/zd"):
                self._handle(action, f"/dev/{name}")

    def _handle(self, action: str, node: str) -> None:
        if action in ("add", "change"):
            dataset = devices.name_of_node(node)
            if dataset is None or self._of_node.get(node) == dataset:
                return
            self._of_node[node] = dataset
            link = Path(devices.link(dataset))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            os.symlink(node, link)
        elif action == "remove" and node in self._of_node:
            link = Path(devices.link(self._of_node.pop(node)))
            with contextlib.suppress(OSError):
                if os.readlink(link) == node:
                    link.unlink()
