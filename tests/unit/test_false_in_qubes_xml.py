# SPDX-License-Identifier: BSD-2-Clause
"""A setting of False survives a restart of qubesd, in R4.3 as well.

core-admin 4.3 omits attributes that are False from qubes.xml, and passes "False"
as text; later versions do neither.
"""

import types

import pytest

from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool


def written(config):
    """Return the attributes in qubes.xml that core-admin 4.3 writes."""
    return {
        key: str(value) for key, value in config.items() if value is not False
    }


def reloaded(pool):
    attributes = written(pool.config)
    del attributes["driver"]
    return ZfsEncryptedPool(**attributes)


@pytest.fixture
def pool():
    return ZfsEncryptedPool(name="safe", zpool_name="tank")


@pytest.mark.parametrize("setting", [True, False])
def test_ephemeral_volatile_of_a_pool_survives_a_restart(pool, setting):
    assert reloaded(pool).ephemeral_volatile is True
    pool.ephemeral_volatile = setting
    assert reloaded(pool).ephemeral_volatile is setting
    assert reloaded(reloaded(pool)).ephemeral_volatile is setting


@pytest.mark.parametrize("setting", [None, True, False])
def test_ephemeral_of_a_volume_survives_a_restart(pool, setting):
    qube = types.SimpleNamespace(name="work", app=None)
    config = {"name": "volatile", "pool": "safe", "size": 1 << 20, "rw": True}
    volume = pool.init_volume(qube, config)
    if setting is not None:
        volume.ephemeral = setting
    attributes = written(volume.config)
    for name, value in attributes.items():
        if value == "True":
            attributes[name] = True
    loaded = pool.init_volume(qube, attributes)
    assert loaded.ephemeral is (setting is not False)
    assert written(loaded.config) == written(volume.config)
