# SPDX-License-Identifier: BSD-2-Clause
"""The gate that a world can be stopped at, and a look at ZFS of its own."""

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

#: dataset -> its guid, its own properties, snapshots, ...; see parsed()
Dump = dict[str, dict[str, Any]]

#: All there is below a dataset, a line each: not by the programs that are
#: tested, and asking little.  Each snapshot or child that is listed and each
#: native property makes ZFS open its dataset, unless something holds that
#: open, which under emulation takes 17 ms.
DUMP = b"""
local argv = (...).argv
local lines, names, own, origins = {}, {}, {}, {}
local function line(...) lines[#lines + 1] = table.concat({...}, "\\t") end
local function prop(ds, name) return (zfs.get_prop(ds, name)) end
local function look(ds, depth)
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
        -- its clone may be elsewhere than where this looks
        if argv.part then origins[snapshot] = true end
    end
    if zvol then return end
    for child in zfs.list.children(ds) do look(child, depth + 1) end
end
if zfs.exists(argv.container) then look(argv.container, argv.depth) end
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
    -- only what was cloned can be destroyed and still be there
    if prop(origin, "defer_destroy") == "on" then line("leaving", origin) end
end
return table.concat(lines, "\\n")
"""


#: instead of the result of a program that reached its limit
OVER = object()


class Stopped(BaseException):
    """The machine has stopped; not even a finally clause gets anywhere."""


class Violated(AssertionError):
    """A promise was broken."""


@dataclass
class Gate:
    """What stands between one world and ZFS.

    :ivar passed: the changing calls that were let through
    :ivar left: how many more may pass; None: all
    :ivar place: stop in the middle of the next, at its so manieth place; if
        it has no such place, or at 0, before the one that follows
    """

    passed: list[str] = field(default_factory=list)
    left: int | None = None
    place: int = 0
    dead: bool = False

    def open(self, left: int | None = None, place: int = 0) -> None:
        self.passed = []
        self.left, self.place = left, place
        self.dead = False

    def through(self, what: str, call: Callable[[int], Any]) -> Any:
        """*call* is told the place to stop in it, 0 for none."""
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
        self.passed.append(what)
        return result

    def stop(self) -> NoReturn:
        self.dead = True
        raise Stopped


class Door:
    """Puts each world's gate into the driver's two doors to ZFS."""

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

    def call(self, what: str, subject: str, *args: Any) -> Any:
        gate = self._gate(subject)
        if gate is None:
            return self._call(what, subject, *args)
        if what in ("channel_program_nosync", "sync"):
            if gate.dead:
                raise Stopped
            return self._call(what, subject, *args)
        if what == "channel_program":
            how = self._program
        elif what in ("create", "clone") and isinstance(args[-1], dict):
            how = self._in_two
        else:
            how = self._at_once
        return gate.through(
            what, functools.partial(how, gate, what, subject, *args)
        )

    def _at_once(self, gate: Gate, what: str, subject: str, *args: Any) -> Any:
        return self._call(what, subject, *args[:-1])

    def _in_two(self, gate: Gate, what: str, subject: str, *args: Any) -> Any:
        """What ZFS itself does in two transaction groups."""
        *names, given, place = args
        native_only = {k: v for k, v in given.items() if b":" not in k}
        if place != 1 or native_only == given:
            return self._call(what, subject, *names, given)
        self._call(what, subject, *names, native_only)
        gate.stop()

    def _program(self, gate: Gate, what: str, subject: str, *args: Any) -> Any:
        """A program is ended at any hundredth instruction if its caller is
        killed; ZFS looks at its limit of instructions there, too."""
        zpool, program, _, memory, argument, place = args
        library = lzc.library()

        def over(run: Callable[..., Any], limit: int) -> Any:
            with contextlib.suppress(library.exceptions.ZCPTimeout):
                return run(zpool, program, limit, memory, argument)
            return OVER

        if not place:
            return self._call(what, subject, *args[:-1])
        # a program that may only read comes as far as its first change
        limit = 99
        with contextlib.suppress(library.exceptions.ZCPRuntimeError):
            while over(library.lzc_channel_program_nosync, limit) is OVER:
                limit += 100
        limit += 100 * (place - 1)
        result = over(library.lzc_channel_program, limit)
        if result is OVER:
            gate.stop()
        return result

    def dump(self, container: str, below: str | None, volumes: int) -> Dump:
        """What is in a container, or in one dataset of it.

        :param volumes: how many slashes there are in a volume's name
        """
        top = below or container
        argument = {
            "container": top,
            "depth": top.count("/"),
            "volumes": volumes,
            "part": below is not None,
            "holder": naming.HOLDER,
        }
        with contextlib.ExitStack() as held:
            for path in Path(devices.link(top)).rglob("*"):
                if path.is_symlink():
                    _hold(str(path), held)
            found = self._call(
                "channel_program_nosync",
                container,
                container.partition("/")[0].encode(),
                DUMP,
                zcp.INSTRUCTION_LIMIT,
                zcp.MEMORY_LIMIT,
                zcp.encode(argument),
            )
        return parsed(Reply(zcp.decode(found)).as_text())

    async def run(self, program: str, *arguments: str, **more: Any) -> Any:
        gate = self._gate(arguments[-1])
        if gate is None:
            return await self._run(program, *arguments, **more)
        gate.through(program, lambda _: None)
        return await self._run(program, *arguments, **more)


def _hold(path: str, held: contextlib.ExitStack) -> None:
    """Keep a zvol open; not another one that a link of the past leads to."""
    with contextlib.suppress(OSError):
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if devices._name_of_open(opened) == devices.dataset_of(path):
            held.callback(os.close, opened)
        else:
            os.close(opened)


def parsed(lines: str) -> Dump:
    """What DUMP said, dataset by dataset."""
    found: Dump = {}
    for kind, *words in (line.split("\t") for line in lines.splitlines()):
        match kind, words:
            case "dataset", [name, guid]:
                item = found[name] = {"guid": int(guid)}
                item |= {"snapshots": {}, "own": {}}
            case "own", [name, value]:
                item["own"][name] = value
            case "origin", [name]:
                item["origin"] = name
            case "snapshot", [short, guid]:
                item["snapshots"][short] = {"guid": int(guid), "leaving": False}
            case "current", [name, volsize, written]:
                found[name]["volsize"] = int(volsize)
                found[name]["written"] = int(written)
            case "leaving", [name]:
                dataset, _, short = name.partition("@")
                if dataset in found:
                    found[dataset]["snapshots"][short]["leaving"] = True
            case _:
                raise ValueError(f"not a line of a dump: {kind} {words}")
    return found


def names(dump: Dump) -> set[tuple[str, int]]:
    """What is there, for a comparison: names and guids, snapshots too."""
    return {(name, item["guid"]) for name, item in dump.items()} | {
        (f"{name}@{short}", snapshot["guid"])
        for name, item in dump.items()
        for short, snapshot in item["snapshots"].items()
    }
