# SPDX-License-Identifier: BSD-2-Clause
"""A setting that is False outlives a restart of qubesd, in R4.3 as well.

core-admin 4.3 omits attributes that are False from qubes.xml and hands over
"False" as text; later versions do neither.
"""

import types

import pytest

from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool


def written(config):
    """The attributes of an element in qubes.xml, as core-admin 4.3 has them."""
    return {
        key: str(value) for key, value in config.items() if value is not False
    }


def again(pool):
    attributes = written(pool.config)
    del attributes["driver"]
    return ZfsEncryptedPool(**attributes)


@pytest.fixture
def pool():
    return ZfsEncryptedPool(name="safe", zpool_name="tank")


@pytest.mark.parametrize("wanted", [True, False])
def test_ephemeral_volatile_of_a_pool_survives_a_restart(pool, wanted):
    assert again(pool).ephemeral_volatile is True
    pool.ephemeral_volatile = wanted
    assert again(pool).ephemeral_volatile is wanted
    assert again(again(pool)).ephemeral_volatile is wanted


@pytest.mark.parametrize("wanted", [None, True, False])
def test_ephemeral_of_a_volume_survives_a_restart(pool, wanted):
    qube = types.SimpleNamespace(name="work", app=None)
    config = {"name": "volatile", "pool": "safe", "size": 1 << 20, "rw": True}
    volume = pool.init_volume(qube, config)
    if wanted is not None:
        volume.ephemeral = wanted
    attributes = written(volume.config)
    for name, value in attributes.items():
        if value == "True":
            attributes[name] = True
    loaded = pool.init_volume(qube, attributes)
    assert loaded.ephemeral is (wanted is not False)
    assert written(loaded.config) == written(volume.config)
