# SPDX-License-Identifier: BSD-2-Clause
"""Encrypted pools: keys asked for when needed, forgotten when idle."""

import logging
import re
import secrets

from ..store import claim, messages, naming, options, policy, pool_programs
from ..store.messages import Refused
from ..store.options import (
    DEFAULT_ITERATIONS,
    DEFAULT_REVISIONS,
    DEFAULT_TIMEOUT,
)
from ..zfs import commands, keys, lzc, runtime
from ..zfs.batch import Batch
from ..zfs.errors import Busy, Locked
from . import prompts
from .admin import Application, Qube, Volume
from .errors import prefixed
from .keytimer import Key, Keys
from .pool import OLDEST_OPENZFS, ZfsPool
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")

CREATE_BY_HAND = (
    "create the encrypted dataset in a terminal of dom0, with 'sudo zfs create"
    " -o encryption=aes-256-gcm -o keyformat=passphrase -o mountpoint=none"
    " {dataset}', and add the pool again"
)
LOAD_BY_HAND = (
    "load its key in a terminal of dom0, with 'sudo zfs load-key {dataset}',"
    " and add the pool again"
)


class ZfsEncryptedPool(ZfsPool):
    """Driver ``zfs_encrypted``: volumes below an encryption root of the pool.

    Container and qubes root are ``<zpool_name>/encryption/<pool>``.  The key is
    loaded when a qube starts, and unloaded when no volume needs it.  Options
    besides those of ZfsPool, of which ``ephemeral_volatile`` is True here:

    =======================  =======  =======================================
    ``zpool_name``           needed   zpool or dataset, not encrypted itself
    ``ask_password_domain``  none     qube that asks; else default_guivm, dom0
    ``unload_timeout``       1200     seconds without use; 0: at once, -1: never
    ``opaque_names``         False    random names in ZFS instead of the qubes'
    ``pbkdf2iters``          350000   100000 to 100000000
    =======================  =======  =======================================
    """

    driver = "zfs_encrypted"
    is_encrypted = True

    def __init__(
        self,
        *,
        name: str,
        zpool_name: str | None = None,
        ask_password_domain: str | None = None,
        unload_timeout: object = None,
        opaque_names: object = None,
        pbkdf2iters: object = None,
        revisions_to_keep: object = DEFAULT_REVISIONS,
        ephemeral_volatile: object = True,
        volblocksize: str | None = None,
        compression: str | None = None,
        dedup: str | None = None,
        snap_on_start_forensics: object = None,
        tag_qubes: object = None,
        **kwargs: object,
    ) -> None:
        super().__init__(
            name=name,
            raw_options={
                **kwargs,
                "zpool_name": zpool_name,
                "ask_password_domain": ask_password_domain,
                "unload_timeout": unload_timeout,
                "opaque_names": opaque_names,
                "pbkdf2iters": pbkdf2iters,
                "revisions_to_keep": revisions_to_keep,
                "ephemeral_volatile": ephemeral_volatile,
                "volblocksize": volblocksize,
                "compression": compression,
                "dedup": dedup,
                "snap_on_start_forensics": snap_on_start_forensics,
                "tag_qubes": tag_qubes,
            },
        )
        self.container = f"{zpool_name or name}/encryption/{name}"
        self.qubes_root = self.container
        self.unload_timeout: int = self._options.parsed(
            "unload_timeout", DEFAULT_TIMEOUT
        )
        self.opaque_names: bool = self._options.parsed("opaque_names", False)

    # --- where the passphrase is asked for

    @property
    def ask_domain(self) -> prompts.AskDomain | None:
        """The qube that ask_password_domain names; None: see prompts.py."""
        name = self._options.text("ask_password_domain")
        if name is None:
            return None
        return prompts.AskDomain(name, self._options.text(naming.ASK_UUID))

    def note_ask_domain(self, app: Application | None) -> None:
        """Have qubes.xml say which qube is asked, if it does not yet."""
        ask_domain = self.ask_domain
        if ask_domain is not None and ask_domain.uuid is None:
            qube = prompts.find_domain(ask_domain.name, app)
            if qube is not None:
                self._options[naming.ASK_UUID] = str(qube.uuid)

    @property
    def key(self) -> Key:
        key = runtime.of(Keys).at(self.container, self.name, self.store)
        key.timeout = self.unload_timeout
        return key

    # --- when the key is asked for

    async def first_use(self) -> None:
        self.key.watch()
        await super().first_use()

    async def unlock(
        self,
        qube: str | None = None,
        app: Application | None = None,
        for_operation: bool = True,
    ) -> None:
        """Have the key loaded, by asking a person if it is not.

        :param qube: for which, to find the GUI domain
        :param for_operation: for an operation that begins now; else for the qube's start
        :raises NotAsked: if nobody answered, or nobody is asked yet
        :raises policy.Refused: if what is on disk is not allowed; then nobody
            is asked, for a key that is loaded makes devices
        :raises ZfsError: WrongPassphrase, and whatever ZFS refuses
        """
        await self.must_be_allowed()
        prompt = prompts.prompt(self.name, self.ask_domain, qube, app)
        await self.key.unlock(prompt, for_operation)

    async def must_be_unlocked(self, batch: Batch | None = None) -> None:
        key_state = await keys.state(self.container, batch)
        if key_state.locked:
            keys.must_be_passphrase(self.container, key_state)
            raise Locked(self.container)

    def note_use(self) -> None:
        self.key.note_use()

    # --- volumes

    def init_volume(
        self, vm: Qube, volume_config: dict[str, object]
    ) -> ZfsVolume:
        config = dict(volume_config)
        if self.opaque_names:
            config.setdefault("vid", f"{secrets.token_hex(8)}/v")
        return super().init_volume(vm, config)

    # --- coming and going

    async def setup(self) -> "ZfsEncryptedPool":
        """Make the pool, or adopt its encryption root.

        :raises StoragePoolException: saying what is wrong with which option,
            or why there is no key
        """
        with prefixed(f"Cannot add the pool {self.name}"):
            self._check_options()
            self.zpool_must_be_imported()
            root = await keys.state(self.container)
            if root.exists:
                await self._claim_root(root)
            else:
                await self._create_root()
            compression = self._options.text("compression")
            if compression:
                await commands.set_property(
                    self.qubes_root, "compression", compression
                )
            await self.set_dedup()
        self.note_zpool()
        self.key.note_use()
        self.key.watch()
        return self

    def _check_options(self) -> None:
        if self._options["zpool_name"] is None:
            raise Refused("give zpool_name=<zpool or dataset> to put it in")
        options.check(self._options)
        if not _NAME.match(self.name):
            raise Refused(
                f"{self.name!r} cannot name an encrypted pool: letters,"
                " digits and - _ . only, 64 at most"
            )
        naming.dataset_name(self.container)
        self._check_ask_domain()
        version = lzc.version_numbers()
        if version is not None and version < OLDEST_OPENZFS:
            raise Refused(messages.TOO_OLD_TO_ENCRYPT)

    def _check_ask_domain(self) -> None:
        """:raises BadOption: if ask_password_domain names no qube that can be
        asked later"""
        name = self._options.text("ask_password_domain")
        if name is None:
            return
        qube = prompts.find_domain(name)
        if qube is None:
            raise options.BadOption(
                f"ask_password_domain names the qube {name}, which does not"
                " exist; create it first, or choose another"
            )
        if prompts.is_remote(qube):
            raise options.BadOption(
                f"ask_password_domain names the qube {name}, a RemoteVM, which"
                " cannot show a prompt; choose a qube of this system"
            )
        if getattr(qube, "auto_cleanup", False):
            raise options.BadOption(
                f"ask_password_domain names the qube {name}, which Qubes"
                " removes when it stops; choose one that stays"
            )
        self.note_ask_domain(None)

    def _prompt(self, instead: str) -> keys.Prompt:
        instead = instead.format(dataset=self.container)
        return prompts.prompt(self.name, self.ask_domain, instead=instead)

    async def _create_root(self) -> None:
        parent = str(self._options["zpool_name"])
        parent_key = await keys.state(parent)
        if not parent_key.exists:
            raise Refused(messages.NOT_FOUND, dataset=parent)
        if parent_key.root is not None:
            raise Refused(
                messages.NESTED_KEYS, dataset=parent, root=parent_key.root
            )
        intermediate = f"{parent}/encryption"
        is_new = not (await keys.state(intermediate)).exists
        if is_new:
            await lzc.create_filesystem(intermediate, policy.ROOT_SETTINGS)
        try:
            await keys.create(
                self.container,
                options.parse_iterations(
                    self._options["pbkdf2iters"] or DEFAULT_ITERATIONS
                ),
                {**policy.ROOT_SETTINGS, naming.OWNER: self.name},
                self._prompt(CREATE_BY_HAND),
            )
        except BaseException:
            if is_new:
                await claim.destroy_empty(intermediate)
            raise

    async def _claim_root(self, root: keys.KeyState) -> None:
        """A root that is there: never created again, its key checked."""
        if root.root != self.container or root.format != "passphrase":
            raise Refused(messages.NOT_A_ROOT, dataset=self.container)
        container_state = await pool_programs.container(
            self.container, self.qubes_root
        )
        claim.check_claimable(self.name, self.container, container_state)
        if container_state.foreign is not None:
            raise Refused(
                messages.FOREIGN_ROOT, dataset=container_state.foreign
            )
        if container_state.owner is None:
            await commands.set_properties(
                self.container, policy.TAKEN_OVER_SETTINGS
            )
        # before the key is loaded, which makes devices
        is_claimed = container_state.owner is not None
        await policy.check(self.place, must_be_claimed=is_claimed)
        try:
            await keys.load(self.container, self._prompt(LOAD_BY_HAND))
        except keys.NobodyToAsk:
            if not root.loaded:
                raise
        await claim.claim(self.container, self.name)

    async def destroy(self) -> None:
        """Give the container back, locked if nothing uses it; what is in it
        stays."""
        await super().destroy()
        try:
            await keys.unload(self.container)
        except Locked:
            pass
        except Busy as exc:
            holders = "; ".join(exc.holders) or "something"
            LOG.warning("%s stays unlocked: %s", self.container, holders)
        self.key.retire()


def encrypted_pools(app: Application) -> list[ZfsEncryptedPool]:
    return [
        pool
        for pool in app.pools.values()
        if isinstance(pool, ZfsEncryptedPool)
    ]


def pools_of(qube: Qube) -> list[ZfsEncryptedPool]:
    """The encrypted pools that a qube's volumes are in or come from."""
    pools: dict[str, ZfsEncryptedPool] = {}
    for volume in getattr(qube, "volumes", {}).values():
        above: Volume | None = volume
        while above is not None:
            if isinstance(above.pool, ZfsEncryptedPool):
                pools[above.pool.name] = above.pool
            above = getattr(above, "source", None)
    return list(pools.values())


def plain_volumes(qube: Qube) -> list[Volume]:
    """Volumes that a qube writes to outside encrypted pools, if it has some
    in one."""
    if not any(
        isinstance(volume.pool, ZfsEncryptedPool)
        for volume in qube.volumes.values()
    ):
        return []
    return [
        volume
        for volume in qube.volumes.values()
        if volume.rw
        and not isinstance(volume.pool, ZfsEncryptedPool)
        and not getattr(volume, "ephemeral", False)
    ]
