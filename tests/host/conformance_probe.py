# SPDX-License-Identifier: BSD-2-Clause
"""Describe the qubes package that can be imported, as JSON.

Run once with a real core-admin checkout in PYTHONPATH and once with the
stand-in; both have to say the same.
"""

import asyncio
import inspect
import json
import logging
import os
import sys
import tempfile
import types
import warnings
from typing import Any


def _stub_libvirt():
    """An empty module: core-admin imports it, and nothing here calls it."""
    stub = types.ModuleType("libvirt")
    vars(stub)["libvirtError"] = type("libvirtError", (Exception,), {})
    sys.modules.setdefault("libvirt", stub)


_stub_libvirt()
# at the end, so that this directory's qubes package does not come first
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import qubes.storage  # noqa: E402
import qubes.utils  # noqa: E402
from conformance_driver import (  # noqa: E402
    FAIL,
    LOG,
    FakeApp,
    FakeVM,
    RecPool,
    RecVolume,
    SyncVolume,
    note,
    volume_config,
)


async def outcome(awaitable):
    """Return the result of a call, or its exception."""
    try:
        if inspect.isawaitable(awaitable):
            awaitable = await awaitable
    except BaseException as exc:
        text = str(exc) if type(exc).__name__ in INJECTED else ""
        return f"{type(exc).__name__}: {text}"
    return str(awaitable)


INJECTED = {"OSError", "CalledProcessError", "KeyError"}


async def life(failures, volume_class):
    """Run the life of one qube through Storage; return the record."""
    LOG.clear()
    FAIL.clear()
    FAIL.update(failures)
    with tempfile.TemporaryDirectory() as base:
        qubes.storage.VOLUME_STATE_DIR = base
        app = FakeApp(base, volume_class)
        tmpl = FakeVM(app, "tmpl", volume_config())
        vm = FakeVM(app, "work-1", volume_config(True), tmpl)
        new = FakeVM(app, "copy", volume_config(True), tmpl)
        FakeVM(app, "disp", volume_config(True), vm)
        late = FakeVM(app, "late", {})
        late.storage, late.volume_config = None, volume_config()
        FakeVM(app, "early", volume_config(True), late)
        loaded = volume_config(True)
        loaded["root"].update(source="tmpl/root", pool="one", size="4096")
        FakeVM(app, "loaded", loaded, tmpl)
        store = vm.storage

        async def step(label, func, *args, **kwargs):
            async def call():
                result = func(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            note("==", label)
            note("->", (await outcome(call())).replace(base, "BASE"))
            running = [v.name for v in vm.volumes.values() if v.is_running()]
            note("running", running)

        await step("create", store.create)
        await step("verify", store.verify)
        await step("start", store.start)
        vm.running = True
        await step("outdated", lambda: store.outdated_volumes)
        await step("resize running", store.resize, "private", 9000)
        vm.service_fails = True
        await step("resize failing", store.resize, "private", 9001)
        await step("keep -1 running", store.set_revisions_to_keep, "root", -1)
        await step("keep 5 running", store.set_revisions_to_keep, "root", 5)
        vm.volumes["root"].revisions_to_keep = -1
        await step("keep 5 of -1", store.set_revisions_to_keep, "root", 5)
        vm.volumes["root"].revisions_to_keep = 0
        await step("keep -2", store.set_revisions_to_keep, "root", -2)
        await step("export", store.export, "private")
        await step("export_end", store.export_end, "private", "/p")
        vm.running = False
        await step("stop", store.stop)
        await step("stop again", store.stop)
        await step("outdated halted", lambda: store.outdated_volumes)
        await step("import", store.import_data, "private", None)
        await step("import end", store.import_data_end, "private", False)
        await step("import size", store.import_data, "private", 77)
        await step("import end", store.import_data_end, "private", True)
        dst, src = vm.volumes["private"], tmpl.volumes["private"]
        await step("import volume", store.import_volume, dst, src)
        await step("keep -1", tmpl.storage.set_revisions_to_keep, "root", -1)
        await step("start template", tmpl.storage.start)
        await step("start on -1", store.start)
        src = tmpl.volumes["root"]
        await step("import from -1", store.import_volume, dst, src)
        new.dispvms = [vm]
        vm.running = True
        args = ("root", -1)
        await step("keep disp", new.storage.set_revisions_to_keep, *args)
        await step("clone one", new.storage.clone_volume, vm, "private")
        await step("clone", new.storage.clone, vm)
        await step("cloned", lambda: sorted(map(repr, new.volumes.values())))
        await step("copy dir", lambda: os.path.exists(new.dir_path))
        await step("get bad", store.get_volume, 5)
        await step("get missing", store.get_volume, "nothing")
        await step("utilization", store.get_disk_utilization)
        vm.running = False
        await step("remove", store.remove)
        os.rmdir(vm.dir_path)
        await step("verify no dir", store.verify)
    return list(LOG)


LIVES = [
    {},
    {"create root": "driver"},
    {"start private": "driver"},
    {"start volatile": "program"},
    {"start *": "driver"},
    {"verify root": "driver"},
    {"stop root": "driver"},
    {"stop root": "system"},
    {"stop private": "program"},
    {"stop private": "key"},
    {"remove root": "system"},
    {"remove root": "driver"},
    {"remove *": "driver"},
    {"import_volume private": "driver"},
    {"import_data private": "driver"},
    {"import_data_end private": "system"},
    {"export private": "driver"},
    {"export_end private": "key"},
    {"resize private": "driver"},
]


async def encrypted():
    """Return the calls for ephemeral volumes, with the programs replaced."""
    LOG.clear()
    FAIL.clear()
    originals = qubes.utils.cryptsetup, qubes.utils.run_program

    async def program(*args, **kwargs):
        note("program", args, sorted(kwargs.items()))

    qubes.utils.cryptsetup = qubes.utils.run_program = program
    with tempfile.TemporaryDirectory() as base:
        qubes.storage.VOLUME_STATE_DIR = base
        vm = FakeVM(FakeApp(base, RecVolume), "my_w-2", volume_config())
        vm.app.pools["two"].ephemeral_volatile = True
        module: Any = sys.modules[qubes.storage.Volume.__module__]
        module._am_root = False
        for operation in vm.storage.start(), vm.storage.stop():
            note("->", await outcome(operation))
        for dev in vm.storage.block_devices():
            note(sorted(vars(dev).items()))
        volume = vm.volumes["volatile"]
        for path in "/dev/sda", "/dev/mapper/a/b":
            note("->", await outcome(volume.start_encrypted(path)))
        note("->", await outcome(volume.stop_encrypted("/dev/sda")))
        for value in False, True, None:
            volume.ephemeral = value
            note(volume.ephemeral, sorted(volume.config.items()))
        for name in "root", "private":
            try:
                vm.volumes[name].ephemeral = True
            except qubes.exc.QubesValueError:
                note("refused", name)
    qubes.utils.cryptsetup, qubes.utils.run_program = originals
    return list(LOG)


def describe_values():
    """Return what classes and helpers make of certain values."""
    result = {}

    def put(label, func, *args, **kwargs):
        try:
            result[label] = repr(func(*args, **kwargs))
        except Exception as exc:
            result[label] = "raises " + type(exc).__name__

    def xml(obj):
        return sorted(obj.__xml__().attrib.items())

    LOG.clear()
    FAIL.clear()
    pool = RecPool(name="p-1", colour=None, ephemeral_volatile="on")
    same = RecPool(name="p-1", colour=None)
    plain = qubes.storage.Pool(name="plain")
    put("pool xml", xml, pool)
    put("pool equal", lambda: (pool == same, pool == "p-1", pool == 3))
    put("pool hash", lambda: hash(pool) == hash("p-1"))
    put("pool str", str, pool)
    put("details", lambda: plain.usage_details)
    put("sizes", lambda: (plain.size, plain.usage, plain.included_in(None)))
    put("limits", lambda: (plain.private_img_size, plain.root_img_size))
    for name in "config", "size", "usage":
        put("plain " + name, lambda: getattr(plain, name))
    for text in "yes", "True", 1, None, "":
        put(
            f"ephemeral {text!r}",
            RecPool,
            name="x",
            colour="",
            **{"ephemeral_volatile": text},
        )
    result = {k: v.split(" object at")[0] for k, v in result.items()}
    make = qubes.storage.Volume
    combos = {
        "plain": {},
        "strings": {"size": "12", "revisions_to_keep": "3", "rw": True},
        "bad size": {"size": "12K"},
        "none size": {"size": None},
        "unknown": {"colour": "red"},
        "snap no source": {"snap_on_start": True},
        "source no snap": {"source": make("s", pool, "s")},
        "snapshot": {"source": make("s", pool, "s"), "snap_on_start": True},
        "foreign": {"source": make("s", plain, "s"), "snap_on_start": True},
        "disabled": {"save_on_stop": True, "revisions_to_keep": -1},
        "ephemeral": {"ephemeral": True},
        "ephemeral text": {"ephemeral": "False"},
        "volatile": {"rw": True},
    }
    for label, options in combos.items():

        def describe_volume(options):
            vol = make("root", pool, "a-b/c@d", **options)
            state = (vol.size, vol.ephemeral, vol.snapshots_disabled)
            texts = (str(vol), repr(vol), vol.state_file, vol.is_running())
            same = (vol == make("x", pool, "a-b/c@d"), vol == "a-b/c@d")
            hashed = hash(vol) == hash("p-1:a-b/c@d")
            mapped = vol.encrypted_volume_path("a_b-c", "xvdc")
            return xml(vol), state, texts, same, hashed, mapped

        put("volume " + label, describe_volume, options)
    vol = make("root", pool, "v")
    for name in "revisions", "is_dirty", "is_outdated", "block_device":
        put("base " + name, lambda: getattr(vol, name)())
    put("pool get", lambda: pool.volumes["nothing"])
    put("foreign", lambda: pool.volumes[make("a", plain, "v")])
    put("in", lambda: (vol in pool.volumes, pool.volumes.keys()))
    for date in 0, 1700000000, 1.5:
        put(f"isodate {date}", qubes.storage.isodate, date)
    for text in "True", "1", "on", "False", "0", "off", "", "yes", True, None:
        if hasattr(qubes.utils, "parse_bool"):
            put(f"parse_bool {text!r}", qubes.utils.parse_bool, text)
    for text in "True", "YES", "on", "0", "off", "", "maybe", 1, None, "No":
        put(f"bool {text!r}", qubes.property.bool, None, None, text)
    places = [types.SimpleNamespace(dir_path=path) for path in ("/a", "/b")]
    for path in "/b/c", "/a", "/ab":
        put(
            f"dir {path}",
            lambda: vars(
                qubes.storage.search_pool_containing_dir(places, path)
            ),
        )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "f")
        put("remove no file", qubes.utils.remove_file, path)
        with open(path, "wb"):
            pass
        put("rename", qubes.utils.rename_file, path, path + "2")
        put("remove file", qubes.utils.remove_file, path + "2")
        put("fsync no file", qubes.utils.fsync_path, path)
    return result


def signature(func):
    """Return names, kinds and defaults of parameters."""
    return [
        (par.name, str(par.kind), repr(par.default))
        for par in inspect.signature(func).parameters.values()
    ]


def members(cls):
    """Return everything that a class defines, with signatures."""
    result = {}
    for name, obj in vars(cls).items():
        func = getattr(obj, "__func__", obj)
        if isinstance(obj, property):
            result[name] = ["property", obj.fset is not None]
        elif inspect.isfunction(func):
            kind = "async" if inspect.iscoroutinefunction(func) else "def"
            result[name] = [kind, signature(func)]
        elif not name.startswith("__"):
            result[name] = [
                "value",
                str(obj) if obj is None else type(obj).__name__,
            ]
    return result


def describe_code():
    """Return signatures of classes and functions, and the exceptions."""
    storage = qubes.storage
    classes = ["Pool", "Volume", "Storage", "VolumesCollection", "BlockDevice"]
    utils = {
        name: [inspect.iscoroutinefunction(func), signature(func)]
        for name, func in vars(qubes.utils).items()
        if inspect.isfunction(func)
    }
    helpers = {
        name: signature(func)
        for name, func in vars(storage).items()
        if inspect.isfunction(func)
    }
    excs = {
        name: [
            [base.__name__ for base in cls.__mro__],
            signature(cls.__init__) if "__init__" in vars(cls) else None,
        ]
        for name, cls in vars(qubes.exc).items()
        if inspect.isclass(cls) and issubclass(cls, BaseException)
    }
    return {
        "classes": {n: members(getattr(storage, n)) for n in classes},
        "utils": utils,
        "helpers": helpers,
        "exceptions": excs,
        "constants": [storage.STORAGE_ENTRY_POINT, storage.VOLUME_STATE_PREFIX],
    }


async def concurrency():
    """Check that void_coros_maybe() runs all to the end, then raises."""
    LOG.clear()

    async def work(name, rounds, error=None):
        for _ in range(rounds):
            note(name)
            await asyncio.sleep(0)
        if error:
            raise error

    run = qubes.utils.void_coros_maybe
    note(await outcome(run([])))
    note(await outcome(run([None, 5])))
    note(await outcome(run([work("a", 9), None, work("b", 1, OSError(1))])))
    note(await outcome(run(work(n, 2, KeyError("x")) for n in "cde")))
    note(await outcome(qubes.utils.coro_maybe(work("f", 1))))
    note(await outcome(qubes.utils.coro_maybe(8)))
    return list(LOG)


async def describe():
    """Return the whole description."""
    warnings.simplefilter("ignore", RuntimeWarning)
    logging.disable(logging.CRITICAL)
    result = {"code": describe_code(), "values": describe_values()}
    result["package"] = os.path.dirname(qubes.__file__)
    result["concurrency"] = await concurrency()
    result["encrypted"] = await encrypted()
    result["lives"] = {}
    for failures in LIVES:
        for volume_class in RecVolume, SyncVolume:
            label = f"{volume_class.__name__} {failures}"
            result["lives"][label] = await life(failures, volume_class)
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(describe())))
