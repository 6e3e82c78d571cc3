# SPDX-License-Identifier: BSD-2-Clause
"""The application object: pools, qubes and the XML file."""

import asyncio
import logging
import os
import types

import lxml.etree
import qubes
import qubes.events
import qubes.exc
import qubes.ext
import qubes.storage
import qubes.storage.placeholder
import qubes.utils
import qubes.vm.kinds

qubes.utils.register_entry_point(
    qubes.storage.STORAGE_ENTRY_POINT,
    "placeholder",
    qubes.storage.placeholder.PlaceholderPool,
)


class Hypervisor:
    """The running domains; they outlive the application objects.

    With hold_devices=True every disk is open while its domain runs, so
    that a missing one fails the start and a used one is busy.
    """

    def __init__(self, hold_devices=False):
        self.hold_devices = hold_devices
        self._domains = {}

    def is_running(self, name):
        """Return whether the domain *name* runs."""
        return name in self._domains

    def create(self, name, devices):
        """Run the domain *name* on *devices*, or raise OSError."""
        opened = self._domains[name] = []
        try:
            for device in devices if self.hold_devices else ():
                mode = os.O_RDWR if device.rw else os.O_RDONLY
                opened.append(os.open(device.path, mode))
        except OSError:
            self.destroy(name)
            raise

    def destroy(self, name):
        """End the domain *name* and close its disks."""
        for descriptor in self._domains.pop(name):
            os.close(descriptor)


class VMCollection:
    """The qubes by qid, name or object; iteration is in the order of qids."""

    def __init__(self, app):
        self.app = app
        self._dict = {}

    def add(self, value, _enable_events=True):
        """Add a qube with a new qid and name."""
        if value.qid in self._dict or value.name in self:
            raise ValueError(f"a qube {value.name} ({value.qid}) exists")
        self._dict[value.qid] = value
        if _enable_events:
            value.events_enabled = True
            self.app.fire_event("domain-add", vm=value)
        return value

    def __iter__(self):
        return iter([self._dict[qid] for qid in sorted(self._dict)])

    def __len__(self):
        return len(self._dict)

    def __contains__(self, key):
        return any(key in (vm, vm.qid, vm.name, vm.uuid) for vm in self)

    def __getitem__(self, key):
        for vm in self:
            if key in (vm, vm.qid, vm.name, vm.uuid):
                return vm
        raise KeyError(key)

    def __delitem__(self, key):
        vm = self[key]
        if vm.klass != "AdminVM" and not vm.is_halted():
            raise qubes.exc.QubesVMNotHaltedError(vm)
        self.app.fire_event("domain-pre-delete", pre_event=True, vm=vm)
        del self._dict[vm.qid]
        self.app.fire_event("domain-delete", vm=vm)

    def get_new_unused_qid(self):
        """Return the lowest free qid."""
        return next(qid for qid in range(1, 10000) if qid not in self._dict)


def _default_pool(suffix):
    """A property: the pool for new volumes of a kind, or the general one."""
    name = "default_pool" + suffix

    def fget(self):
        if name in self.chosen_pools:
            return self.pools[self.chosen_pools[name]]
        if suffix:
            return self.default_pool
        for candidate in "default", "varlibqubes":
            if candidate in self.pools:
                return self.pools[candidate]
        raise AttributeError("there is no default storage pool")

    def fset(self, value):
        if str(value) not in self.pools:
            raise qubes.exc.QubesValueError(f"{name}: no pool {value}")
        self.chosen_pools[name] = str(value)

    return property(fget, fset, doc=f"{name}, set by pool or name")


class Qubes(qubes.events.Emitter):
    """The state of the daemon, loaded from the XML file *store*."""

    POOL_KINDS = "", "_private", "_root", "_volatile", "_kernel"
    default_pool = _default_pool("")
    default_pool_private = _default_pool("_private")
    default_pool_root = _default_pool("_root")
    default_pool_volatile = _default_pool("_volatile")
    default_pool_kernel = _default_pool("_kernel")

    def __init__(
        self, store=None, load=True, offline_mode=None, *, hypervisor=None
    ):
        super().__init__()
        self.log = logging.getLogger("app")
        self._extensions = qubes.ext.get_extensions()
        self.store = str(store)
        self.vmm = types.SimpleNamespace(
            offline_mode=bool(offline_mode),
            hypervisor=hypervisor or Hypervisor(),
        )
        self.domains = VMCollection(self)
        self.pools = {}
        self.chosen_pools = {}
        if load:
            self.load()
        self.events_enabled = True

    def load_initial_values(self):
        """Fill a new system: dom0 and the placeholder as default pool."""
        self.domains.add(qubes.vm.kinds.AdminVM(self, None, qid=0))
        self.pools["varlibqubes"] = self._get_pool(
            name="varlibqubes", driver="placeholder"
        )

    def load(self):
        """Load pools, then qubes, then notify each qube.

        A pool that cannot be made for a QubesException is dropped; any
        other error of a driver ends the load.
        """
        xml = lxml.etree.parse(self.store)
        for node in xml.iterfind("./pools/pool"):
            try:
                self.pools[node.get("name")] = self._get_pool(**node.attrib)
            except qubes.exc.QubesException as exc:
                self.log.error("%s", exc)
        for node in xml.iterfind("./domains/domain"):
            vm = self.get_vm_class(node.get("class"))(self, node)
            self.domains.add(vm, _enable_events=False)
        for node in xml.iterfind("./properties/property"):
            self.chosen_pools[node.get("name")] = node.text
        for vm in self.domains:
            vm.load_extras()
        for vm in self.domains:
            vm.events_enabled = True
            vm.fire_event("domain-load")

    def __xml__(self):
        element = lxml.etree.Element("qubes")
        pools = lxml.etree.SubElement(element, "pools")
        pools.extend([pool.__xml__() for pool in self.pools.values()])
        properties = lxml.etree.SubElement(element, "properties")
        for name, value in self.chosen_pools.items():
            node = lxml.etree.SubElement(properties, "property", name=name)
            node.text = value
        domains = lxml.etree.SubElement(element, "domains")
        domains.extend([vm.__xml__() for vm in self.domains])
        return element

    def save(self):
        """Replace the XML file at once."""
        temporary = self.store + "~new"
        lxml.etree.ElementTree(self.__xml__()).write(
            temporary, encoding="utf-8", pretty_print=True
        )
        qubes.utils.rename_file(temporary, self.store)

    def get_vm_class(self, clsname):
        """Return the class of qubes with the name *clsname*."""
        try:
            return qubes.vm.kinds.CLASSES[clsname]
        except KeyError:
            raise qubes.exc.QubesException(
                f"no such VM class: {clsname!r}"
            ) from None

    def add_new_vm(self, cls, qid=None, **kwargs):
        """Create a qube object; nothing changes on disk."""
        if qid is None:
            qid = self.domains.get_new_unused_qid()
        if isinstance(cls, str):
            cls = self.get_vm_class(cls)
        if isinstance(kwargs.get("template"), str):
            kwargs["template"] = self.domains[kwargs["template"]]
        return self.domains.add(cls(self, None, qid=qid, **kwargs))

    @staticmethod
    def _get_pool(**kwargs):
        if not kwargs.get("name"):
            raise qubes.exc.QubesException("a pool needs a name")
        name = kwargs["name"]
        driver = kwargs.pop("driver", None)
        if driver is None:
            raise qubes.exc.QubesException(f"pool {name} needs a driver")
        try:
            klass = qubes.utils.get_entry_point_one(
                qubes.storage.STORAGE_ENTRY_POINT, driver
            )
            return klass(**kwargs)
        except KeyError:
            raise qubes.exc.QubesException(
                f"No driver {driver} for pool {name}"
            ) from None

    def get_pool(self, pool):
        """Return a pool object, or the pool with this name."""
        if isinstance(pool, qubes.storage.Pool):
            return pool
        if pool not in self.pools:
            raise qubes.exc.QubesException("Unknown storage pool " + pool)
        return self.pools[pool]

    async def add_pool(self, name, **kwargs):
        """Create a pool and set it up; add it only if both succeeded."""
        if name in self.pools:
            raise qubes.exc.QubesException(f"pool {name} already exists")
        pool = self._get_pool(name=name, **kwargs)
        await qubes.utils.coro_maybe(pool.setup())
        self.pools[name] = pool
        await self.fire_event_async("pool-add", pool=pool)
        return pool

    async def remove_pool(self, name):
        """Remove an unused pool from the system; its data is unchanged."""
        if name not in self.pools:
            return
        pool = self.pools[name]
        for vm in self.domains:
            if any(volume.pool is pool for volume in vm.volumes.values()):
                raise qubes.exc.QubesPoolInUseError(pool)
        for kind in self.POOL_KINDS:
            attribute = "default_pool" + kind
            if getattr(self, attribute, None) is pool:
                raise qubes.exc.QubesPoolInUseError(
                    pool, f"Storage pool is in use: set as {attribute}"
                )
        await self.fire_event_async("pool-pre-delete", True, pool=pool)
        del self.pools[name]
        await self.fire_event_async("pool-delete", pool=pool)

    async def stop_storage(self):
        """Stop the volumes of all halted qubes, whatever happens."""

        async def stop(vm):
            async with vm.startup_lock:
                if not vm.is_running():
                    await vm.storage.stop()

        results = await asyncio.gather(
            *(stop(vm) for vm in self.domains if vm.klass != "AdminVM"),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, Exception):
                self.log.error("stopping storage failed", exc_info=result)
