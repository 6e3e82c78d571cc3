# SPDX-License-Identifier: BSD-2-Clause
"""One pool's key in this process: when it is asked for, and forgotten.

Whether it is loaded, and whether anything uses it, is the kernel's to say:
somebody may load or unload it by hand, and nothing that is open loses its
key.  What is kept here only says when to ask the kernel.
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

#: seconds between looks at whether a key is loaded and still needed
CHECK_INTERVAL = 15.0
#: seconds that a qube may take from the prompt until its volumes are open,
#: and the client of an export or import until it opens that
OPEN_LIMIT = 600.0
#: seconds that a verb may take until it has something open or in hand
OPERATION_LIMIT = 60.0


class Key:
    """The key of one encryption root.

    :ivar timeout: seconds without use after which it is forgotten; -1: never
    :ivar store: what the key is for
    """

    def __init__(self, root: str, pool: str, store: Container) -> None:
        self.root = root
        self.pool = pool
        self.store = store
        self.timeout = -1
        self._loaded = False
        self._last_use = now()
        #: a verb has just begun
        self._not_before = 0.0
        #: qubes that were let through to their start, and until when
        self._starting: dict[str, float] = {}
        self.backoff = Backoff(pool)
        self._prompt_task: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._waiters = 0
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._announced: float | None = -1.0

    # --- asking

    async def unlock(
        self, prompt: keys.Prompt, for_operation: bool = True
    ) -> None:
        """Have the key loaded; one prompt for all that wait for it.

        If all of them were cancelled the prompt is closed.

        :param for_operation: for an operation that starts now; else for the start
            of a qube, see note_qube_starting()
        :raises NotAsked: if nobody answered, or Delayed if a prompt before
            did not unlock the pool
        :raises ZfsError: WrongPassphrase, and whatever ZFS refuses
        """
        self.watch()
        note = self.note_operation if for_operation else self.note_use
        note()
        if self._unloading is not None and not self._unloading.done():
            # it is loaded still, and will not be
            await asyncio.wait([self._unloading])
        key_state = await keys.state(self.root)
        if key_state.loaded:
            self.backoff.reset()
            return
        keys.must_be_passphrase(self.root, key_state)
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
        """Ask once for all that wait.

        A prompt that was shown and did not unlock the pool delays the next
        one, whatever the reason, also if it was closed without an answer.
        """
        shown = False

        async def show(purpose: Purpose, answers: int) -> None:
            nonlocal shown
            shown = True
            await prompt(purpose, answers)

        try:
            await keys.load(self.root, show)
        except keys.NobodyToAsk:
            raise
        except BaseException:
            if shown:
                self.backoff.lengthen()
            raise
        self.backoff.reset()
        self.note_use()
        LOG.info("pool %s: unlocked", self.pool)

    # --- using

    def note_operation(self) -> None:
        """A verb begins that needs the key; nothing is due any sooner."""
        self._last_use = now()
        self._not_before = self._last_use + OPERATION_LIMIT

    def note_use(self) -> None:
        """Something was done with the pool just now."""
        self._last_use = now()
        self._wake.set()

    def note_qube_starting(self, qube: str) -> None:
        """*qube* is about to open its volumes."""
        self._starting[qube] = now() + OPEN_LIMIT

    def note_qube_started(self, qube: str) -> None:
        """*qube* has opened them, and the kernel knows."""
        if self._starting.pop(qube, None) is not None:
            self.note_use()

    def note_qube_stopped(self, qube: str) -> None:
        """*qube* has closed them, or never will open them."""
        self._starting.pop(qube, None)
        self.note_use()

    # --- forgetting

    def watch(self) -> None:
        """From now on look whether the key is to be forgotten."""
        loop = asyncio.get_running_loop()
        task = self._watch
        if task is None or task.done() or task.get_loop() is not loop:
            self._wake = asyncio.Event()
            self._watch = loop.create_task(self._check_forever())

    def retire(self) -> None:
        """The pool was removed: its key is nobody's business here."""
        self.stop_watching()
        runtime.of(Keys).remove(self.root)
        rundir.remove_due(self.pool)

    def stop_watching(self) -> None:
        """End the task that watch() started."""
        if self._watch is not None:
            # a loop that was closed has no task to cancel
            with contextlib.suppress(RuntimeError):
                self._watch.cancel()

    async def _check_forever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._check()
            except ZfsError as exc:
                # the zpool may be away; its keys went with it
                LOG.debug("key of %s: %s", self.root, exc)
                self._loaded = False
                self._announce(None)
            wait = CHECK_INTERVAL
            if self._loaded and self.timeout >= 0:
                wait = min(wait, max(self._due() - now(), 0.1))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    def _due(self) -> float:
        reserved_for = OPEN_LIMIT if self.store.in_hand else 0.0
        due = self._last_use + max(self.timeout, reserved_for)
        return max(due, self._not_before)

    async def _check(self) -> None:
        loaded = (await keys.state(self.root)).loaded
        if loaded and not self._loaded:
            # maybe by hand, maybe before this process began
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
        """Unload the key unless something uses it; whether it is gone."""
        self._unloading = asyncio.ensure_future(lzc.unload_key(self.root))
        try:
            await self._unloading
        except Busy:
            # in use: it has its time from when that ends, which the next
            # look finds out if nobody says so
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
        """Leave word of when the key is to be forgotten; None: no moment."""
        if due == self._announced:
            return
        self._announced = due
        rundir.write_due(self.pool, self.root, due)


class Keys:
    """The keys of this process, one for each encryption root; see Runtime.

    qubesd builds a second set of pools for a backup, so several pool objects
    may have the same key.  Only the event loop's thread touches this.
    """

    def __init__(self) -> None:
        self._by_root: dict[str, Key] = {}

    def __contains__(self, root: object) -> bool:
        return root in self._by_root

    def at(self, root: str, pool: str, store: Container) -> Key:
        """Return the key of an encryption root, created when first needed."""
        if root not in self._by_root:
            self._by_root[root] = Key(root, pool, store)
        return self._by_root[root]

    def remove(self, root: str) -> None:
        """Remove the key of a pool that qubesd has no more."""
        self._by_root.pop(root, None)

    def close(self) -> None:
        """End the tasks of all keys."""
        for key in self._by_root.values():
            key.stop_watching()
