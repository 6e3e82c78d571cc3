# SPDX-License-Identifier: BSD-2-Clause
"""The gate at which a world is stopped, and a dump of ZFS for the checks."""

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from qubes_storage_zfs.store import naming
from qubes_storage_zfs.zfs import commands, devices, lzc, zcp
from qubes_storage_zfs.zfs.reply import Reply

#: dataset -> its GUID, local properties, snapshots, ...; see parsed()
Dump = dict[str, dict[str, Any]]

#: Channel program that prints everything below a dataset, one item a line.
#: It shares no code with the programs that are tested, and is fast.  ZFS opens
#: a dataset for each snapshot or child that it lists, and for each native
#: property.  Under emulation this takes 17 ms, unless the dataset is open.
DUMP = b"""
local argv = (...).argv
local lines, names, own, origins = {}, {}, {}, {}
local function line(...) lines[#lines + 1] = table.concat({...}, "\\t") end
local function prop(ds, name) return (zfs.get_prop(ds, name)) end
local function visit(ds, depth)
    names[ds] = true
    line("dataset", ds, prop(ds, "guid"))
    local zvol = depth == argv.volumes or string.match(ds, "%.%d+$") ~= nil
    if zvol then
        local value, source = zfs.get_prop(ds, argv.holder)
        if source == ds then line("own", argv.holder, value) end
        local origin = prop(ds, "origin")
        if origin then
            line("origin", origin)
            origins[origin] = true
        end
    else
        for name, value, source in zfs.list.user_properties(ds) do
            if source == ds then
                line("own", name, value)
                own[#own + 1] = {ds, name, value}
            end
        end
    end
    for snapshot in zfs.list.snapshots(ds) do
        line("snapshot", string.match(snapshot, "@(.*)$"),
            prop(snapshot, "guid"))
        -- its clone may be outside of the part that is dumped
        if argv.part then origins[snapshot] = true end
    end
    if zvol then return end
    for child in zfs.list.children(ds) do visit(child, depth + 1) end
end
if zfs.exists(argv.container) then visit(argv.container, argv.depth) end
for _, item in ipairs(own) do
    local ds, name, value = item[1], item[2], item[3]
    local volume = string.match(name, "current%.(.*)$")
    local number = volume and string.match(value, "^%d+")
    if number then
        local suffix = number ~= "0" and "." .. number or ""
        local path = ds .. "/" .. volume .. suffix
        if names[path] then
            line("current", path, prop(path, "volsize"), prop(path, "written"))
        end
    end
end
for origin in pairs(origins) do
    -- a destroyed snapshot still exists only if it has a clone
    if prop(origin, "defer_destroy") == "on" then line("leaving", origin) end
end
return table.concat(lines, "\\n")
"""

#: the result of a program that reached its limit of instructions
LIMIT_REACHED = object()


class Stopped(BaseException):
    """The world has stopped; no finally clause changes anything."""


class Violated(AssertionError):
    """A promise of the driver was broken."""


@dataclass
class Gate:
    """Count the calls of one world that change ZFS, and stop one of them.

    :ivar passed: names of the changing calls that were let through
    :ivar left: how many calls are let through in all; None: every call
    :ivar place: the place in the next call to stop at, counted from 1. With
        0, stop before that call. If the call has fewer places, stop before
        the call that follows.
    :ivar dead: whether the world was stopped
    """

    passed: list[str] = field(default_factory=list)
    left: int | None = None
    place: int = 0
    dead: bool = False

    def open(self, left: int | None = None, place: int = 0) -> None:
        """Count from zero, and stop as these say; the world can go on."""
        self.passed = []
        self.left, self.place = left, place
        self.dead = False

    def through(self, call_name: str, call: Callable[[int], Any]) -> Any:
        """Let a call through, or stop before it or in it.

        :param call: its argument is the place in it to stop at; 0: none
        """
        if self.dead:
            raise Stopped
        place = 0
        if self.left == len(self.passed):
            place = self.place
            if not place:
                self.stop()
            result = call(place)
            self.left, self.place = self.left + 1, 0
        else:
            result = call(0)
        self.passed.append(call_name)
        return result

    def stop(self) -> NoReturn:
        """Stop the world for good.

        :raises Stopped: always
        """
        self.dead = True
        raise Stopped


class Door:
    """Put gates into the two modules by which the driver changes ZFS.

    A context manager; ``gates`` has the gate of each container.
    """

    def __init__(self) -> None:
        self.gates: dict[str, Gate] = {}
        self._call, self._run = lzc.call, commands.run

    def __enter__(self) -> "Door":
        lzc.call, commands.run = self.call, self.run
        return self

    def __exit__(self, *_: object) -> None:
        lzc.call, commands.run = self._call, self._run

    def _gate(self, dataset: str) -> Gate | None:
        return self.gates.get("/".join(dataset.split("/")[:2]))

    def call(self, call_name: str, subject: str, *args: Any) -> Any:
        gate = self._gate(subject)
        if gate is None:
            return self._call(call_name, subject, *args)
        if call_name in ("channel_program_nosync", "sync"):
            if gate.dead:
                raise Stopped
            return self._call(call_name, subject, *args)
        if call_name == "channel_program":
            method = self._program
        elif call_name in ("create", "clone") and isinstance(args[-1], dict):
            method = self._in_two
        else:
            method = self._at_once
        return gate.through(
            call_name,
            functools.partial(method, gate, call_name, subject, *args),
        )

    def _at_once(
        self, gate: Gate, call_name: str, subject: str, *args: Any
    ) -> Any:
        return self._call(call_name, subject, *args[:-1])

    def _in_two(
        self, gate: Gate, call_name: str, subject: str, *args: Any
    ) -> Any:
        """Create or clone in two steps: ZFS uses two transaction groups."""
        *names, properties, place = args
        native = {k: v for k, v in properties.items() if b":" not in k}
        if place != 1 or native == properties:
            return self._call(call_name, subject, *names, properties)
        self._call(call_name, subject, *names, native)
        gate.stop()

    def _program(
        self, gate: Gate, call_name: str, subject: str, *args: Any
    ) -> Any:
        """Run a channel program, and end it at a place in it.

        ZFS ends a program at a hundredth instruction if its caller is killed.
        It checks the limit of instructions at the same places, so a limit
        simulates the kill.
        """
        zpool, program, _, memory, argument, place = args
        library = lzc.library()

        def run_limited(run: Callable[..., Any], limit: int) -> Any:
            with contextlib.suppress(library.exceptions.ZCPTimeout):
                return run(zpool, program, limit, memory, argument)
            return LIMIT_REACHED

        if not place:
            return self._call(call_name, subject, *args[:-1])
        # a run that may only read reaches the first change, and fails there
        limit = 99
        with contextlib.suppress(library.exceptions.ZCPRuntimeError):
            while (
                run_limited(library.lzc_channel_program_nosync, limit)
                is LIMIT_REACHED
            ):
                limit += 100
        limit += 100 * (place - 1)
        result = run_limited(library.lzc_channel_program, limit)
        if result is LIMIT_REACHED:
            gate.stop()
        return result

    def dump(self, container: str, below: str | None, volumes: int) -> Dump:
        """Dump a container, or one dataset below it.

        :param volumes: how many slashes the name of a volume has
        """
        top = below or container
        argument = {
            "container": top,
            "depth": top.count("/"),
            "volumes": volumes,
            "part": below is not None,
            "holder": naming.HOLDER,
        }
        with contextlib.ExitStack() as opened_zvols:
            for path in Path(devices.link(top)).rglob("*"):
                if path.is_symlink():
                    _hold(str(path), opened_zvols)
            result = self._call(
                "channel_program_nosync",
                container,
                container.partition("/")[0].encode(),
                DUMP,
                zcp.INSTRUCTION_LIMIT,
                zcp.MEMORY_LIMIT,
                zcp.encode(argument),
            )
        return parsed(Reply(zcp.decode(result)).as_text())

    async def run(self, program: str, *arguments: str, **more: Any) -> Any:
        gate = self._gate(arguments[-1])
        if gate is None:
            return await self._run(program, *arguments, **more)
        gate.through(program, lambda _: None)
        return await self._run(program, *arguments, **more)


def _hold(path: str, opened_zvols: contextlib.ExitStack) -> None:
    """Keep a zvol open, unless the link leads to another zvol by now."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if devices._name_of_open(descriptor) == devices.dataset_of(path):
            opened_zvols.callback(os.close, descriptor)
        else:
            os.close(descriptor)


def parsed(lines: str) -> Dump:
    """Parse the lines that DUMP printed."""
    result: Dump = {}
    for kind, *words in (line.split("\t") for line in lines.splitlines()):
        match kind, words:
            case "dataset", [name, guid]:
                item = result[name] = {"guid": int(guid)}
                item |= {"snapshots": {}, "own": {}}
            case "own", [name, value]:
                item["own"][name] = value
            case "origin", [name]:
                item["origin"] = name
            case "snapshot", [short, guid]:
                item["snapshots"][short] = {"guid": int(guid), "leaving": False}
            case "current", [name, volsize, written]:
                result[name]["volsize"] = int(volsize)
                result[name]["written"] = int(written)
            case "leaving", [name]:
                dataset, _, short = name.partition("@")
                if dataset in result:
                    result[dataset]["snapshots"][short]["leaving"] = True
            case _:
                raise ValueError(f"not a line of a dump: {kind} {words}")
    return result


def names(dump: Dump) -> set[tuple[str, int]]:
    """Return names and GUIDs of datasets and snapshots, for a comparison."""
    return {(name, item["guid"]) for name, item in dump.items()} | {
        (f"{name}@{short}", snapshot["guid"])
        for name, item in dump.items()
        for short, snapshot in item["snapshots"].items()
    }
