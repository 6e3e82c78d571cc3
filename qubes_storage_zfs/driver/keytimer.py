# SPDX-License-Identifier: BSD-2-Clause
"""The key of a pool: when to load it by a prompt, and when to unload it.

The kernel knows whether a key is loaded and whether it is in use.  An
administrator can load or unload it by hand.  The kernel does not unload a key
while a volume is open.  So this module only stores when to ask the kernel.
"""

import asyncio
import contextlib
import logging

from ..store import rundir
from ..store.container import Container
from ..store.rundir import now
from ..zfs import keys, lzc, runtime
from ..zfs.errors import Busy, Locked, ZfsError
from ..zfs.keywords import Purpose
from .backoff import Backoff

LOG = logging.getLogger("qubes.storage.zfs")

#: seconds between checks whether a key is loaded and still needed
CHECK_INTERVAL = 15.0
#: seconds that a qube may take from the prompt until its volumes are open, and
#: that the client of an export or import may take until it opens the device
OPEN_LIMIT = 600.0
#: seconds that an operation may take until it opens or reserves a volume
OPERATION_LIMIT = 60.0


class Key:
    """The key of one encryption root.

    Keys creates it at the first use of the pool.  It lasts until the pool is
    removed, or until qubesd exits.  Only the thread of the event loop uses it.

    One prompt serves all operations that wait for the key.  A task checks the
    key every CHECK_INTERVAL seconds, and unloads it after ``timeout`` seconds
    without use.  The kernel refuses to unload a key in use; then the time
    without use starts again.

    :ivar root: the encryption root
    :ivar pool: name of the pool
    :ivar store: the container that the key encrypts
    :ivar timeout: seconds without use after which the key is unloaded; -1:
        never
    :ivar backoff: the delay until the next prompt
    """

    def __init__(self, root: str, pool: str, store: Container) -> None:
        """Start without a timer; watch() starts it."""
        self.root = root
        self.pool = pool
        self.store = store
        self.timeout = -1
        self._loaded = False
        self._last_use = now()
        #: the key is not unloaded before, because an operation has just started
        self._not_before = 0.0
        #: qubes that are starting -> time when they must have opened their
        #: volumes
        self._starting: dict[str, float] = {}
        self.backoff = Backoff(pool)
        self._prompt_task: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._waiters = 0
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._announced: float | None = -1.0

    # --- loading

    async def unlock(
        self, prompt: keys.Prompt, for_operation: bool = True
    ) -> None:
        """Load the key, with one prompt for all tasks that wait for it.

        If all these tasks are cancelled, the prompt is closed.

        :param prompt: asks the user for the passphrase
        :param for_operation: for an operation that starts now; else for the
            start of a qube, see note_qube_starting()
        :raises PromptFailed: if the user did not answer
        :raises Delayed: if the delay after an earlier prompt lasts
        :raises WrongPassphrase: if the passphrase is wrong
        :raises ZfsError: if ZFS refuses to load the key
        """
        self.watch()
        note = self.note_operation if for_operation else self.note_use
        note()
        if self._unloading is not None and not self._unloading.done():
            # the kernel reports a loaded key until it has unloaded it
            await asyncio.wait([self._unloading])
        key_state = await keys.state(self.root)
        if key_state.loaded:
            self.backoff.reset()
            return
        keys.require_passphrase(self.root, key_state)
        task = self._prompt_task
        if task is None or task.done():
            self.backoff.check()
            task = self._prompt_task = asyncio.create_task(self._ask(prompt))
            self._waiters = 0
        self._waiters += 1
        try:
            await asyncio.shield(task)
            note()
        finally:
            self._waiters -= 1
            if not self._waiters and not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def _ask(self, prompt: keys.Prompt) -> None:
        """Show one prompt, and load the key with the answer.

        A prompt that was shown and did not unlock the pool delays the next one.
        The reason does not matter: a prompt that was closed counts, too.
        """
        shown = False

        async def show(purpose: Purpose, answers: int) -> None:
            nonlocal shown
            shown = True
            await prompt(purpose, answers)

        try:
            await keys.load(self.root, show)
        except keys.NoPrompt:
            raise
        except BaseException:
            if shown:
                self.backoff.lengthen()
            raise
        self.backoff.reset()
        self.note_use()
        LOG.info("pool %s: unlocked", self.pool)

    # --- use

    def note_operation(self) -> None:
        """Note that an operation starts that needs the key."""
        self._last_use = now()
        self._not_before = self._last_use + OPERATION_LIMIT

    def note_use(self) -> None:
        """Note a use of the pool now, and check the key at once."""
        self._last_use = now()
        self._wake.set()

    def note_qube_starting(self, qube: str) -> None:
        """Note that *qube* will open its volumes within OPEN_LIMIT."""
        self._starting[qube] = now() + OPEN_LIMIT

    def note_qube_started(self, qube: str) -> None:
        """Note that *qube* has opened its volumes, as the kernel now knows."""
        if self._starting.pop(qube, None) is not None:
            self.note_use()

    def note_qube_stopped(self, qube: str) -> None:
        """Note that *qube* has closed its volumes, or will not open them."""
        self._starting.pop(qube, None)
        self.note_use()

    # --- unloading

    def watch(self) -> None:
        """Start the task that unloads the key when it is not needed."""
        loop = asyncio.get_running_loop()
        task = self._watch
        if task is None or task.done() or task.get_loop() is not loop:
            self._wake = asyncio.Event()
            self._watch = loop.create_task(self._check_forever())

    def retire(self) -> None:
        """Drop this object, because the pool was removed."""
        self.stop_watching()
        runtime.of(Keys).remove(self.root)
        rundir.remove_due(self.pool)

    def stop_watching(self) -> None:
        """Stop the task that watch() started."""
        if self._watch is not None:
            # raised if the event loop of the task is closed
            with contextlib.suppress(RuntimeError):
                self._watch.cancel()

    async def _check_forever(self) -> None:
        """Check the key when it is due, after each use, and periodically."""
        while True:
            self._wake.clear()
            try:
                await self._check()
            except ZfsError as exc:
                # if the zpool was exported, its keys were unloaded
                LOG.debug("cannot query the key of %s: %s", self.root, exc)
                self._loaded = False
                self._announce(None)
            wait = CHECK_INTERVAL
            if self._loaded and self.timeout >= 0:
                wait = min(wait, max(self._due() - now(), 0.1))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    def _due(self) -> float:
        """Return the time at which the key is unloaded if it is not used."""
        reserved_for = OPEN_LIMIT if self.store.reserved else 0.0
        due = self._last_use + max(self.timeout, reserved_for)
        return max(due, self._not_before)

    async def _check(self) -> None:
        """Unload the key if it is due, and write when it will be.

        :raises ZfsError: if the key's state cannot be read
        """
        loaded = (await keys.state(self.root)).loaded
        if loaded and not self._loaded:
            # loaded by hand, or before this process started
            self.backoff.reset()
            self._last_use = max(self._last_use, now())
        self._loaded = loaded
        current = now()
        for qube, limit in list(self._starting.items()):
            if limit < current:
                del self._starting[qube]
        if not loaded or self.timeout < 0:
            self._announce(None)
        elif self._starting or current < self._due():
            self._announce(self._due())
        else:
            await self.unload()

    async def unload(self) -> bool:
        """Unload the key, unless a volume is in use.

        :return: whether the key is not loaded any more
        """
        self._unloading = asyncio.ensure_future(lzc.unload_key(self.root))
        try:
            await self._unloading
        except Busy:
            # the key was in use now, so the timeout starts again; a volume
            # may be closed without a call of this driver
            self._last_use = max(
                self._last_use, now() + CHECK_INTERVAL - max(self.timeout, 0)
            )
            self._announce(None)
            return False
        except Locked:
            pass
        else:
            LOG.info("pool %s: locked", self.pool)
        self._loaded = False
        self._announce(None)
        return True

    def _announce(self, due: float | None) -> None:
        """Write the time at which the key will be unloaded, for the tools.

        :param due: None: no time is known
        """
        if due == self._announced:
            return
        self._announced = due
        rundir.write_due(self.pool, self.root, due)


class Keys:
    """The keys of this process, one for each encryption root.

    zfs/runtime.py creates it once in a process.  qubesd builds a second set of
    pools for a backup, so several pool objects can share a key.  Only the
    thread of the event loop uses it.
    """

    def __init__(self) -> None:
        """Start without keys."""
        self._by_root: dict[str, Key] = {}

    def __contains__(self, root: object) -> bool:
        """Return whether a pool with this encryption root was used."""
        return root in self._by_root

    def at(self, root: str, pool: str, store: Container) -> Key:
        """Return the key of an encryption root; create it at its first use.

        :param root: the encryption root
        :param pool: name of the pool
        :param store: the container of the pool
        """
        if root not in self._by_root:
            self._by_root[root] = Key(root, pool, store)
        return self._by_root[root]

    def remove(self, root: str) -> None:
        """Drop the key of a removed pool from this table."""
        self._by_root.pop(root, None)

    def close(self) -> None:
        """Stop the tasks of all keys."""
        for key in self._by_root.values():
            key.stop_watching()
