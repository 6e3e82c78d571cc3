# SPDX-License-Identifier: BSD-2-Clause
"""Keys: the driver asks for a key when needed and unloads it when idle."""

import asyncio
import errno
import os
import subprocess
import types
from pathlib import Path

import pytest
from qubes.exc import StoragePoolException

from qubes_storage_zfs.driver import keytimer, prompts
from qubes_storage_zfs.driver.encrypted import ZfsEncryptedPool
from qubes_storage_zfs.store import rundir
from qubes_storage_zfs.zfs import keys, lzc, runtime
from qubes_storage_zfs.zfs.errors import Busy

from ..support.lab import EncryptedLab, Lab, becomes_locked
from ..support.prompts import PASSPHRASE, cancelled
from ..support.zpools import MIB, read, sh, write

pytestmark = [pytest.mark.side_a, pytest.mark.usefixtures("run_dir")]


def state(lab):
    return lab.run(keys.state(lab.container))


def lock(lab):
    lab.run(keys.unload(lab.container))


def zfs_key(command, dataset, passphrase=None):
    """Run a command such as zfs load-key, as an administrator does."""
    done = subprocess.run(
        ["zfs", *command, dataset],
        input=passphrase and passphrase + b"\n",
        capture_output=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


# --- adding a pool


def test_add_asks_twice_and_creates_an_encryption_root(zpool, person):
    lab = EncryptedLab(zpool, asked=True)
    assert person.asked == ["new", "new-again"]
    assert state(lab) == keys.KeyState(True, lab.container, True, "passphrase")
    values = sh(
        *("zfs", "get", "-Hpo", "value"),
        "encryption,keylocation,pbkdf2iters,mountpoint,canmount,volmode",
        lab.container,
    ).split("\n")
    assert values == [
        "aes-256-gcm",
        "prompt",
        "100000",
        "none",
        "off",
        "dev",
    ]
    lock(lab)
    assert zfs_key(["load-key"], lab.container, PASSPHRASE)[0] == 0


@pytest.mark.parametrize(
    "replies, asked",
    [
        ([b"short", PASSPHRASE, PASSPHRASE], ["new", "new-short", "new-again"]),
        (
            [b"x" * 513, b"y" * 512, b"y" * 512],
            ["new", "new-short", "new-again"],
        ),
        (
            [PASSPHRASE, b"another one", PASSPHRASE, PASSPHRASE],
            ["new", "new-again", "new-differs", "new-again"],
        ),
    ],
)
def test_add_asks_again_until_two_passphrases_match(
    zpool, person, replies, asked
):
    person.replies = list(replies)
    lab = EncryptedLab(zpool, asked=True)
    assert person.asked == asked
    lock(lab)
    assert zfs_key(["load-key"], lab.container, replies[-1])[0] == 0


@pytest.mark.parametrize(
    "replies, why",
    [
        ([cancelled()], "the passphrase prompt was cancelled"),
        ([b"1", b"2", b"3"], "did not match, or were not 8 to 512"),
        ([b"x" * 5000], "the passphrase prompt returned invalid input"),
        ([b"two\nlines of text"], "returned invalid input"),
        ([b"nul\0 in the middle"], "returned invalid input"),
    ],
)
def test_failed_prompt_leaves_no_dataset(zpool, person, replies, why):
    before = sh("zfs", "list", "-Hro", "name", zpool)
    person.replies = replies
    with pytest.raises(StoragePoolException, match=why):
        EncryptedLab(zpool, asked=True)
    assert sh("zfs", "list", "-Hro", "name", zpool) == before


def test_existing_encryption_root_is_added_with_its_passphrase(safe, person):
    volume = safe.private(content=b"data")
    lock(safe)
    person.replies = [b"a wrong one", PASSPHRASE]
    guid = sh("zfs", "get", "-Hpo", "value", "guid", safe.container)
    safe.run(safe.restart().setup())
    assert person.asked == ["unlock", "unlock-again"]
    assert sh("zfs", "get", "-Hpo", "value", "guid", safe.container) == guid
    assert safe.content(safe.again(volume)) == b"data"


def test_removed_pool_is_locked_and_can_be_added_again(safe, person):
    volume = safe.private(content=b"data")
    safe.run(safe.pool.destroy())
    assert state(safe).locked
    assert safe.container not in runtime.of(keytimer.Keys)
    assert list(rundir.RUN_DIR.iterdir()) == []
    safe.run(safe.restart().setup())
    assert person.asked == ["unlock"]
    assert safe.content(safe.again(volume)) == b"data"


def test_encryption_root_created_by_zfs_is_claimed(zpool, person):
    container = f"{zpool}/encryption/stock"
    sh("zfs", "create", "-p", f"{zpool}/encryption")
    options = "encryption=on", "keyformat=passphrase", "mountpoint=none"
    create = [word for option in options for word in ("-o", option)]
    assert zfs_key(["create", *create], container, PASSPHRASE)[0] == 0
    assert zfs_key(["unload-key"], container)[0] == 0
    pool = ZfsEncryptedPool(name="stock", zpool_name=zpool)
    lab = Lab(zpool)
    lab.run(pool.setup())
    assert person.asked == ["unlock"]
    volume = lab.volume("work", pool=pool, save_on_stop=True)
    lab.run(volume.create())
    assert sh("zfs", "get", "-Ho", "value", "volmode", volume.dataset) == "dev"
    lab.run(volume.remove())
    sh("zfs", "destroy", "-r", container)


def test_dataset_that_is_no_encryption_root_is_refused(zpool, person, safe):
    sh("zfs", "create", f"{zpool}/encryption/plain")
    pool = ZfsEncryptedPool(name="plain", zpool_name=zpool)
    with pytest.raises(
        StoragePoolException, match="is not an encryption root with keyformat"
    ):
        safe.run(pool.setup())
    nested = ZfsEncryptedPool(name="in", zpool_name=safe.container)
    with pytest.raises(StoragePoolException, match="is already encrypted"):
        safe.run(nested.setup())
    assert person.asked == []
    sh("zfs", "destroy", f"{zpool}/encryption/plain")


def test_foreign_encryption_root_with_children_is_refused(zpool, person, safe):
    container = f"{zpool}/encryption/theirs"
    options = "encryption=on", "keyformat=passphrase", "mountpoint=none"
    create = [word for option in options for word in ("-o", option)]
    assert zfs_key(["create", *create], container, PASSPHRASE)[0] == 0
    sh("zfs", "create", f"{container}/photos")
    pool = ZfsEncryptedPool(name="theirs", zpool_name=zpool)
    with pytest.raises(
        StoragePoolException, match="not created by this driver"
    ):
        safe.run(pool.setup())
    sh("zfs", "destroy", "-r", container)


def test_encryption_root_of_another_pool_is_refused(zpool, person, safe):
    sh("zfs", "set", "qubes-storage-zfs:pool=other", safe.container)
    with pytest.raises(StoragePoolException, match="belongs to the pool other"):
        safe.run(safe.restart().setup())


def test_stop_without_the_key_resets_a_disposable_volume(safe):
    volume = safe.volatile()
    safe.start(volume)
    write(volume.path, b"secret")
    name = volume.dataset
    lock(safe)
    safe.stop(volume)
    assert sh("zfs", "get", "-Hpo", "value", "written@s1", name) == "0"
    safe.run(safe.pool.unlock())
    safe.start(volume)
    assert volume.dataset == name and read(volume.path) == b""
    safe.stop(volume)


def test_garbage_is_collected_when_the_key_is_loaded(safe):
    """An unmarked zvol is garbage only if it is not larger than a blank zvol.

    The driver has to create a blank zvol to measure that; this needs the key.
    """
    volume = safe.private(content=b"data")
    left = volume.where.generation(7)
    sh("zfs", "create", "-s", "-V", "4m", "-b", "16k", left)

    def is_left():
        return left in sh("zfs", "list", "-Hro", "name", safe.container)

    lock(safe)
    safe.restart()
    volume = safe.again(volume)
    safe.stop(volume)
    assert is_left()
    assert safe.content(volume, 4) == b"data"
    assert not is_left()


# --- when the driver asks for the key


def test_operations_of_a_user_ask_for_the_key(safe, person):
    volume = safe.private(content=b"one")
    source = safe.private("source", b"two")
    verbs = [
        lambda: safe.run(safe.volume("new", save_on_stop=True).create()),
        lambda: safe.content(volume),
        lambda: safe.run(volume.import_data(4 * MIB)),
        lambda: safe.run(volume.import_data_end(False)),
        lambda: safe.run(volume.import_volume(source)),
        lambda: safe.run(volume.revert()),
        lambda: safe.run(volume.resize(8 * MIB)),
    ]
    asks = [1, 1, 1, 0, 1, 1, 1]
    for verb, count in zip(verbs, asks, strict=True):
        lock(safe)
        person.asked.clear()
        if not count:
            assert zfs_key(["load-key"], safe.container, PASSPHRASE)[0] == 0
        verb()
        assert len(person.asked) == count


def test_background_operations_never_ask_for_the_key(safe, person):
    volume = safe.private(content=b"one")
    clone = safe.clone_of(volume)
    lock(safe)
    assert volume.is_dirty() is False and volume.revisions
    assert volume.size and volume.usage and safe.pool.size
    assert clone.is_outdated() is False
    assert volume.vid in [v.vid for v in safe.pool.list_volumes()]
    assert safe.run(volume.verify())
    safe.stop(volume, clone)
    safe.run(clone.remove())
    pool = safe.restart()
    assert pool.config and pool.usage
    safe.stop(safe.again(volume))
    assert person.asked == []
    with pytest.raises(StoragePoolException, match="qvm-zfs unlock"):
        safe.run(safe.again(volume).start())
    safe.run(safe.again(volume).remove())
    assert person.asked == [] and state(safe).locked


@pytest.mark.parametrize(
    "replies, why",
    [
        ([cancelled()], "prompt was cancelled"),
        ([b"wrong one", b"wrong two", b"wrong three"], "passphrase was wrong"),
        ([b"\0garbage"], "returned invalid input"),
    ],
)
def test_operation_without_the_key_changes_nothing(safe, person, replies, why):
    volume = safe.private(content=b"one")
    lock(safe)
    before = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", safe.container)
    person.replies = replies
    with pytest.raises(StoragePoolException, match=why):
        safe.run(volume.import_data(8 * MIB))
    after = sh("zfs", "list", "-Hrt", "all", "-o", "name,guid", safe.container)
    assert after == before and state(safe).locked


def test_waiting_operations_share_one_prompt(safe, person):
    volumes = [safe.private(f"q{n}", b"%d" % n) for n in range(4)]
    lock(safe)

    async def together():
        return await asyncio.gather(*(v.export() for v in volumes))

    paths = safe.run(together())
    assert person.asked == ["unlock"]
    assert [read(path) for path in paths] == [b"0", b"1", b"2", b"3"]
    for volume, path in zip(volumes, paths, strict=True):
        safe.run(volume.export_end(path))


def test_operation_started_during_an_unload_asks_for_the_key(
    safe, person, monkeypatch
):
    volume = safe.private(content=b"one")
    unload = lzc.unload_key

    async def slowly(root):
        await asyncio.sleep(0.5)
        await unload(root)

    async def both():
        forgotten = asyncio.create_task(safe.pool.key.unload())
        await asyncio.sleep(0.1)
        await volume.resize(8 * MIB)
        return await forgotten

    monkeypatch.setattr(lzc, "unload_key", slowly)
    assert safe.run(both())
    assert person.asked == ["unlock"] and volume.size == 8 * MIB


def test_prompt_is_closed_when_all_waiting_operations_are_cancelled(
    safe, person
):
    volume = safe.private(content=b"one")
    lock(safe)
    person.replies = [None]

    async def leave():
        tasks = [asyncio.create_task(volume.export()) for _ in range(2)]
        while not person.asked:
            await asyncio.sleep(0.05)
        tasks[0].cancel()
        await asyncio.sleep(0.2)
        assert person.closed == 0
        tasks[1].cancel()
        await asyncio.wait(tasks)
        return [task.cancelled() for task in tasks]

    assert safe.run(leave()) == [True, True]
    assert person.closed == 1 and state(safe).locked
    with pytest.raises(
        StoragePoolException, match="shows no other prompt before"
    ):
        safe.content(volume)
    safe.pool.key.backoff.reset()
    assert safe.content(volume) == b"one"


def test_key_loaded_by_hand_is_not_asked_for(safe, person):
    volume = safe.private(content=b"one")
    lock(safe)
    assert zfs_key(["load-key"], safe.container, PASSPHRASE)[0] == 0
    assert safe.content(volume) == b"one"
    assert person.asked == []
    assert zfs_key(["unload-key"], safe.container)[0] == 0
    assert safe.content(volume) == b"one"
    assert person.asked == ["unlock"]


def test_locked_pool_works_after_an_import_of_its_zpool(person):
    disk = Path("/tmp/safe.img")
    with open(disk, "wb") as file:
        file.truncate(256 * MIB)
    sh("zpool", "create", "-m", "none", "safe", str(disk))
    lab = EncryptedLab("safe")
    volume = lab.private(content=b"one")
    lock(lab)
    sh("zpool", "export", "safe")
    assert lab.pool.usage is None and volume.is_dirty() is False
    lab.stop(volume)
    with pytest.raises(StoragePoolException, match="is not imported"):
        lab.run(volume.export())
    sh("zpool", "import", "-d", "/tmp", "safe")
    assert lab.content(volume) == b"one"
    lock(lab)
    sh("zpool", "destroy", "safe")
    disk.unlink()


# --- operations in an encrypted pool


def test_qube_runs_in_an_encrypted_pool(safe):
    root = safe.private("tmpl", b"system", name="root")
    volume = safe.private(content=b"one")
    app, volatile = safe.clone_of(root), safe.volatile()
    safe.start(app, volume, volatile)
    assert read(app.path) == b"system"
    for each in (app, volume, volatile):
        root_of = sh(
            "zfs", "get", "-Ho", "value", "encryptionroot", each.dataset
        )
        assert root_of == safe.container
    write(volume.path, b"two")
    safe.stop(app, volume, volatile)
    assert safe.content(volume) == b"two"
    safe.run(volume.revert())
    assert safe.content(volume) == b"one"
    # the datasets have the same names as in a plain pool
    assert "work/private" in safe.datasets()


def test_stop_commits_after_the_key_was_unloaded(safe):
    """The qube halted while qubesd was down, and the key was unloaded."""
    volume = safe.private(content=b"one")
    safe.start(volume)
    write(volume.path, b"two")
    lock(safe)
    safe.restart()
    volume = safe.again(volume)
    assert volume.is_dirty()
    safe.stop(volume)
    assert not volume.is_dirty()
    assert safe.content(volume) == b"two"


def test_import_between_encrypted_and_plain_pools_copies(zpool, safe, make_lab):
    plain = make_lab()
    inside = safe.private("in", b"secret")
    outside = plain.private("out", b"public")
    for there, source in (safe, outside), (plain, inside):
        target = there.private("copy")
        there.run(target.import_volume(source))
        assert there.content(target) == there.content(source)
        encryption, origin = sh(
            *("zfs", "get", "-Ho", "value", "encryption,origin"),
            target.dataset,
        ).split("\n")
        assert (encryption == "off") == (there is plain)
        assert origin == "-"


def test_included_in_returns_the_pool_beneath(zpool, safe, make_lab):
    plain = make_lab()
    pool = ZfsEncryptedPool(name="up", zpool_name=plain.container)
    plain.run(pool.setup())
    app = types.SimpleNamespace(
        pools={"up": pool, "below": plain.pool, "other": safe.pool}
    )
    assert pool.included_in(app) is plain.pool
    plain.run(pool.destroy())


def test_opaque_names_reveal_no_qube_or_volume(zpool, person):
    lab = EncryptedLab(zpool, opaque_names="True")
    volume = lab.private("journalist", b"story")
    clone = lab.clone_of(volume, "journalist-app")
    lab.start(clone)
    lab.session(volume, b"more")
    told = sh(
        *("zfs", "get", "-Hr", "-t", "all", "all", lab.container),
    )
    assert "journalist" not in told and "private" not in told
    lab.stop(clone)
    config = volume.config
    assert config["vid"] == volume.vid
    assert lab.content(lab.again(volume)) == b"more"


# --- unloading


def forgotten(lab):
    """Return whether the driver unloads the key of an idle pool."""

    async def wait():
        lab.pool.key.watch()
        return await becomes_locked(lab.pool)

    return lab.run(wait())


def test_idle_key_is_unloaded_after_its_timeout(safe, monkeypatch):
    volume = safe.private(content=b"one")
    clock = [keytimer.now()]
    monkeypatch.setattr(keytimer, "now", lambda: clock[0])
    safe.pool.unload_timeout = 1200

    async def wait():
        safe.pool.key.watch()
        safe.pool.note_use()
        clock[0] += 1199
        await asyncio.sleep(1)
        assert (await keys.state(safe.container)).loaded
        # the machine may have been suspended for a night
        clock[0] += 2
        return await becomes_locked(safe.pool)

    assert safe.run(wait())
    assert safe.content(volume) == b"one"


def test_key_is_kept_while_a_volume_is_open(safe):
    volume = safe.private(content=b"one")
    safe.pool.unload_timeout = 0
    path = safe.run(volume.export())
    with open(path, "rb"):
        safe.run(asyncio.sleep(1.5))
        assert not state(safe).locked

        async def some_time():
            safe.pool.key.watch()
            await asyncio.sleep(2)

        safe.run(some_time())
        assert not state(safe).locked
    safe.run(volume.export_end(path))
    assert forgotten(safe)


def test_negative_timeout_keeps_the_key(safe):
    safe.pool.unload_timeout = -1

    async def some_time():
        safe.pool.key.watch()
        await asyncio.sleep(2)

    safe.run(some_time())
    assert not state(safe).locked


def test_key_loaded_before_qubesd_started_is_unloaded(safe):
    safe.restart()
    safe.pool.unload_timeout = 1
    assert forgotten(safe)


def test_key_loaded_by_hand_is_unloaded(safe):
    lock(safe)
    safe.pool.unload_timeout = 1

    async def load():
        safe.pool.key.watch()
        await asyncio.sleep(2)
        assert zfs_key(["load-key"], safe.container, PASSPHRASE)[0] == 0
        await asyncio.sleep(0.5)

    safe.run(load())
    assert forgotten(safe)


def test_unload_error_names_the_process(safe):
    volume = safe.private(content=b"one")
    path = safe.run(volume.export())
    opened = os.open(path, os.O_RDONLY)
    with pytest.raises(Busy) as caught:
        lock(safe)
    assert f"process {os.getpid()}" in "".join(caught.value.holders)
    os.close(opened)
    safe.run(volume.export_end(path))
    lock(safe)


# --- changing the passphrase


def test_passphrase_is_changed(safe, person):
    person.replies = [PASSPHRASE, b"the new passphrase", b"the new passphrase"]
    safe.run(keys.change(safe.container, 100_000, person))
    assert person.asked == ["unlock", "new", "new-again"]
    assert not state(safe).locked
    lock(safe)
    assert zfs_key(["load-key", "-n"], safe.container, PASSPHRASE)[0] != 0
    person.replies = [b"the new passphrase"]
    safe.run(keys.load(safe.container, person))


def test_passphrase_of_a_locked_pool_is_changed(safe, person):
    safe.private(content=b"one")
    lock(safe)
    person.replies = [PASSPHRASE, b"the new passphrase", b"the new passphrase"]
    safe.run(keys.change(safe.container, 100_000, person))
    assert state(safe).locked
    command = ["load-key", "-n"]
    assert zfs_key(command, safe.container, b"the new passphrase")[0] == 0


def test_cancelled_passphrase_change_changes_nothing(safe, person):
    person.replies = [PASSPHRASE, b"the new passphrase", cancelled()]
    with pytest.raises(prompts.PromptFailed):
        safe.run(keys.change(safe.container, 100_000, person))
    assert zfs_key(["load-key", "-n"], safe.container, PASSPHRASE)[0] == 0


def test_old_module_is_refused(zpool, person, monkeypatch):
    monkeypatch.setattr(lzc, "module_version", lambda: "2.3.2-1")
    with pytest.raises(
        StoragePoolException, match="needs OpenZFS 2.3.3 or newer"
    ):
        EncryptedLab(zpool, asked=True)
    assert person.asked == []


def test_wrong_key_raises_eacces(safe):
    with pytest.raises(Exception) as caught:
        lzc.load_key(safe.container, bytes(32), check_only=True)
    assert caught.value.code == errno.EACCES
