# SPDX-License-Identifier: BSD-2-Clause
"""The driver ``zfs_encrypted``: pools with an encryption key of their own."""

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
from .admin import Application, Qube
from .errors import prefixed
from .keytimer import Key, Keys
from .pool import OLDEST_OPENZFS, ZfsPool
from .volume import ZfsVolume

LOG = logging.getLogger("qubes.storage.zfs")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")

CREATE_BY_HAND = (
    "create the encrypted dataset in a dom0 terminal with 'sudo zfs create -o"
    " encryption=aes-256-gcm -o keyformat=passphrase -o mountpoint=none"
    " {dataset}', then add the pool again"
)
LOAD_BY_HAND = (
    "load its key in a dom0 terminal with 'sudo zfs load-key {dataset}', then"
    " add the pool again"
)


class ZfsEncryptedPool(ZfsPool):
    """The driver ``zfs_encrypted``: a pool with an encryption key of its own.

    The driver loads the key when a qube needs it, and asks the user for the
    passphrase.  It unloads the key when no volume has needed it for some time.

    Each volume is a set of zvols below the container ``C``, which is an
    encryption root and the qubes root of the pool:

    ==========================  ===============================================
    ``C``                       ``<zpool_name>/encryption/<pool>``
    ``C/<qube>``                a filesystem that is never mounted; its
                                properties name the current generations
    ``C/<qube>/<volume>``       generation 0 of a volume
    ``C/<qube>/<volume>.<n>``   generation n, from 1 on
    ``...@r<k>``                the committed state (highest k), or a revision
    ``...@s1``                  the baseline snapshot of a disposable volume
    ==========================  ===============================================

    ``<zpool_name>/encryption`` is not encrypted.  It is created if it is
    missing.  With ``opaque_names``, ``<qube>`` is a random number and ``<volume>`` is
    ``v``.  The names of qubes are then only in qubes.xml.

    The kind of a volume decides about its content; ZfsVolume has all
    operations:

    =============  =============  =====================  ======================
    snap_on_start  save_on_stop   start()                stop()
    =============  =============  =====================  ======================
    no             yes (private)  uses the content       commits the content
    no             no (volatile)  starts empty           discards the content
    yes (root of   no             starts from a clone    discards the content
    an app qube)                  of the source
    yes            yes            refused                refused
    =============  =============  =====================  ======================

    Options of ``qvm-pool add`` (default in brackets).  ``zpool_name`` is
    needed.
    ``qvm-pool set`` can change ``revisions_to_keep`` and ``ephemeral_volatile``
    later.

    ``zpool_name``
        an imported zpool, or a dataset in it; not encrypted itself
    ``ask_password_domain`` (default_guivm, else dom0)
        the qube that shows the prompt for the passphrase
    ``unload_timeout`` (1200)
        seconds without use after which the key is unloaded; 0: at once, -1:
        never
    ``opaque_names`` (False)
        whether new volumes have random names in ZFS
    ``pbkdf2iters`` (350000)
        PBKDF2 iterations, 100000 to 100000000; more iterations slow down a
        brute-force attack on the passphrase
    ``revisions_to_keep`` (2)
        number of revisions of each volume besides the committed state; -1: no
        snapshots, and clones and exports only while the qube is halted
    ``ephemeral_volatile`` (True)
        whether volatile volumes are encrypted with a key that is never stored
    ``volblocksize`` (16k)
        block size of new volumes: a power of two from 4k to 128k
    ``compression`` (inherited)
        the ZFS property ``compression``
    ``dedup`` (inherited)
        ``on-for-ever`` or ``off``; dedup slows down the whole zpool
    ``snap_on_start_forensics`` (False)
        whether a clone that start() made is kept after stop(), until the next
        start
    ``tag_qubes`` (True)
        whether qubes with a saved volume here have the tag ``zfs-pool-<pool>``

    :ivar unload_timeout: as the option, in seconds
    :ivar opaque_names: as the option
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
        """Take the options; qubes.xml may have those of a newer version."""
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

    # --- the domain that shows the prompt

    @property
    def ask_domain(self) -> prompts.AskDomain | None:
        """The qube that the option ask_password_domain names; None: not set."""
        name = self._options.text("ask_password_domain")
        if name is None:
            return None
        return prompts.AskDomain(name, self._options.text(naming.ASK_UUID))

    def note_ask_domain(self, app: Application | None) -> None:
        """Record the UUID of the ask domain in qubes.xml, unless recorded.

        :param app: None: the application object of this qubesd
        """
        ask_domain = self.ask_domain
        if ask_domain is not None and ask_domain.uuid is None:
            qube = prompts.find_domain(ask_domain.name, app)
            if qube is not None:
                self._options[naming.ASK_UUID] = str(qube.uuid)

    @property
    def key(self) -> Key:
        """The key of the pool in this process."""
        key = runtime.of(Keys).at(self.container, self.name, self.store)
        key.timeout = self.unload_timeout
        return key

    # --- steps of each operation

    async def first_use(self) -> None:
        """Start the key timer, and collect garbage at the first use."""
        self.key.watch()
        await super().first_use()

    async def unlock(
        self,
        qube: str | None = None,
        app: Application | None = None,
        for_operation: bool = True,
    ) -> None:
        """Load the key; ask the user for the passphrase if it is not loaded.

        The properties on disk are checked first, because the kernel creates
        device nodes when a key is loaded.

        :param qube: name of the qube that needs the pool
        :param app: the application object of that qube
        :param for_operation: for an operation that starts now; else for the
            start of *qube*
        :raises PromptFailed: if the user did not answer, or the delay after an
            earlier prompt lasts
        :raises Refused: if a property has a value that is not allowed
        :raises WrongPassphrase: if the passphrase is wrong
        :raises ZfsError: if ZFS refuses to load the key
        """
        await self.must_be_allowed()
        prompt = prompts.prompt(self.name, self.ask_domain, qube, app)
        await self.key.unlock(prompt, for_operation)

    async def must_be_unlocked(self, batch: Batch | None = None) -> None:
        """Check that the key is loaded.

        :param batch: the batch of the operation
        :raises Locked: if the key is not loaded
        :raises NoPassphrase: if the key is not made from a passphrase
        """
        key_state = await keys.state(self.container, batch)
        if key_state.locked:
            keys.require_passphrase(self.container, key_state)
            raise Locked(self.container)

    def note_use(self) -> None:
        """Note the end of an operation, from which the key timer counts."""
        self.key.note_use()

    # --- volumes

    def init_volume(
        self, vm: Qube, volume_config: dict[str, object]
    ) -> ZfsVolume:
        """Return a new volume object, with a random vid if names are opaque.

        :param vm: the qube
        :param volume_config: the attributes of the volume, as in qubes.xml
        """
        config = dict(volume_config)
        if self.opaque_names:
            config.setdefault("vid", f"{secrets.token_hex(8)}/v")
        return super().init_volume(vm, config)

    # --- addition and removal

    async def setup(self) -> "ZfsEncryptedPool":
        """Create the encryption root, or claim it if it exists.

        :raises StoragePoolException: if an option has a bad value, the dataset
            cannot be used, or the passphrase is missing or wrong
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
        """Check the options and the version of OpenZFS.

        :raises Refused: if an option has a bad value, or OpenZFS is older than
            OLDEST_OPENZFS
        """
        if self._options["zpool_name"] is None:
            raise Refused(
                "the option zpool_name is missing; add it with"
                " '-o zpool_name=<zpool or dataset>'"
            )
        options.check(self._options)
        if not _NAME.match(self.name):
            raise Refused(
                f"{self.name!r} is not a valid name for an encrypted pool; use"
                " at most 64 letters, digits, - _ and ."
            )
        naming.dataset_name(self.container)
        self._check_ask_domain()
        version = lzc.version_numbers()
        if version is not None and version < OLDEST_OPENZFS:
            raise Refused(messages.TOO_OLD_TO_ENCRYPT)

    def _check_ask_domain(self) -> None:
        """Check and record the qube that ask_password_domain names.

        :raises BadOption: if the qube cannot show a prompt later
        """
        name = self._options.text("ask_password_domain")
        if name is None:
            return
        qube = prompts.find_domain(name)
        if qube is None:
            raise options.BadOption(
                f"ask_password_domain names the qube {name}, which does not"
                " exist; create it first, or choose another qube"
            )
        if prompts.is_remote(qube):
            raise options.BadOption(
                f"ask_password_domain names the qube {name}, a RemoteVM, which"
                " cannot show a prompt; choose a qube of this system"
            )
        if getattr(qube, "auto_cleanup", False):
            raise options.BadOption(
                f"ask_password_domain names the qube {name}, which Qubes"
                " removes when it stops; choose a qube that is not disposable"
            )
        self.note_ask_domain(None)

    def _prompt(self, instead: str) -> keys.Prompt:
        """Return the prompt for setup().

        :param instead: the advice if no prompt can be shown, with {dataset}
        """
        instead = instead.format(dataset=self.container)
        return prompts.prompt(self.name, self.ask_domain, instead=instead)

    async def _create_root(self) -> None:
        """Create the encryption root, and its parent if that is missing.

        :raises Refused: if ``zpool_name`` does not exist, or is encrypted
        """
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
                {**policy.ROOT_SETTINGS, naming.CLAIM: self.name},
                self._prompt(CREATE_BY_HAND),
            )
        except BaseException:
            if is_new:
                await claim.destroy_empty(intermediate)
            raise

    async def _claim_root(self, root: keys.KeyState) -> None:
        """Claim an encryption root that exists, after checking its key.

        :raises Refused: if this pool cannot have the encryption root
        """
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
        if container_state.claimed_by is None:
            await commands.set_properties(
                self.container, policy.CLAIMED_SETTINGS
            )
        # before the key is loaded, because the kernel then creates device nodes
        is_claimed = container_state.claimed_by is not None
        await policy.check(self.place, must_be_claimed=is_claimed)
        try:
            await keys.load(self.container, self._prompt(LOAD_BY_HAND))
        except keys.NoPrompt:
            if not root.loaded:
                raise
        await claim.claim(self.container, self.name)

    async def destroy(self) -> None:
        """Release the container, when the pool is removed; keep all data.

        The key is unloaded, unless a volume is in use.

        :raises StoragePoolException: if ZFS refuses
        """
        await super().destroy()
        try:
            await keys.unload(self.container)
        except Locked:
            pass
        except Busy as exc:
            holders = "; ".join(exc.holders) or "an unknown process"
            LOG.warning(
                "%s is still unlocked, because it is in use (%s); run 'sudo zfs"
                " unload-key' when it is no longer in use",
                self.container,
                holders,
            )
        self.key.retire()
