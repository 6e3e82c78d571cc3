# SPDX-License-Identifier: BSD-2-Clause
"""A pool without any data, the default pool of a new system."""

import qubes.storage


class PlaceholderVolume(qubes.storage.Volume):
    """A volume without data, which accepts all operations."""

    path = "/dev/null"
    revisions = {}

    async def create(self):
        return self

    async def remove(self):
        pass

    async def start(self):
        return self

    async def stop(self):
        return self

    async def verify(self):
        return True

    async def resize(self, size):
        self._size = size

    async def export(self):
        return self.path

    async def import_data(self, size):
        return self.path

    async def import_volume(self, src_volume):
        return self

    def is_dirty(self):
        return False

    def is_outdated(self):
        return False


class PlaceholderPool(qubes.storage.Pool):
    """The driver "placeholder"."""

    def __init__(self, *, name, revisions_to_keep=1, ephemeral_volatile=False):
        super().__init__(
            name=name,
            revisions_to_keep=revisions_to_keep,
            ephemeral_volatile=ephemeral_volatile,
        )
        self._known = {}

    @property
    def config(self):
        return {
            "name": self.name,
            "driver": "placeholder",
            "revisions_to_keep": self.revisions_to_keep,
            "ephemeral_volatile": self.ephemeral_volatile,
        }

    async def setup(self):
        pass

    def init_volume(self, vm, volume_config):
        config = dict(volume_config, pool=self)
        config.setdefault("vid", f"{vm.name}/{config['name']}")
        config.setdefault("revisions_to_keep", self.revisions_to_keep)
        volume = PlaceholderVolume(**config)
        self._known[volume.vid] = volume
        return volume

    def list_volumes(self):
        return list(self._known.values())

    def get_volume(self, vid):
        return self._known[vid]
