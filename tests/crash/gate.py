"""The gate that a world can be stopped at, and a look at ZFS of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qubes_storage_zfs import layout
from qubes_storage_zfs.zfs import core, native

#: All there is below a dataset: not by the programs that are tested, and
#: asking little.  Under emulation each snapshot or child listed takes 15 ms,
#: and so does each native property of a zvol that nobody has open.
DUMP = b"""
local argv = (...).argv
local found = {}
local function look(ds, depth)
    local item = {guid = (zfs.get_prop(ds, "guid")), snapshots = {}, own = {}}
    local zvol = depth == 3 or string.match(ds, "%.%d+$") ~= nil
    if zvol then
        local value, source = zfs.get_prop(ds, argv.holder)
        if source == ds then item.own[argv.holder] = value end
        item.origin = (zfs.get_prop(ds, "origin"))
    else
        for name, value, source in zfs.list.user_properties(ds) do
            if source == ds then item.own[name] = value end
        end
    end
    for snapshot in zfs.list.snapshots(ds) do
        item.snapshots[string.match(snapshot, "@(.*)$")] = {
            guid = (zfs.get_prop(snapshot, "guid")),
            leaving = (zfs.get_prop(snapshot, "defer_destroy")) == "on",
        }
    end
    found[ds] = item
    if zvol then return end
    for child in zfs.list.children(ds) do look(child, depth + 1) end
    for name, value in pairs(item.own) do
        local volume = string.match(name, "current%.(.*)$")
        local number = volume and string.match(value, "^%d+")
        local suffix = number ~= "0" and number and "." .. number or ""
        local current = volume and found[ds .. "/" .. volume .. suffix]
        if current then
            local path = ds .. "/" .. volume .. suffix
            current.volsize = (zfs.get_prop(path, "volsize"))
            current.written = (zfs.get_prop(path, "written"))
        end
    end
end
look(argv.container, 0)
return found
"""


class Stopped(BaseException):
    """The machine has stopped; not even a finally clause gets anywhere."""


class Violated(AssertionError):
    """A promise was broken."""


@dataclass
class Gate:
    """What stands between one world and ZFS.

    :ivar passed: the changing calls that were let through
    :ivar left: how many more may pass; None: all
    :ivar half: stop in the middle of a call that ZFS itself does in two
        transaction groups
    :ivar has_half: whether the call it stopped at is such a one
    """

    passed: list[str] = field(default_factory=list)
    left: int | None = None
    half: bool = False
    dead: bool = False
    has_half: bool = False

    def open(self, left: int | None = None, half: bool = False) -> None:
        self.passed = []
        self.left, self.half = left, half
        self.dead = self.has_half = False

    def through(
        self, what: str, call: Callable[[], Any], half: Any = None
    ) -> Any:
        if self.dead:
            raise Stopped
        if self.left == len(self.passed):
            self.dead, self.has_half = True, half is not None
            if self.half and half is not None:
                half()
            raise Stopped
        self.passed.append(what)
        return call()


class Door:
    """Puts each world's gate into the driver's two doors to ZFS."""

    def __init__(self) -> None:
        self.gates: dict[str, Gate] = {}
        self._call, self._run = core._call, native.run

    def __enter__(self) -> "Door":
        core._call, native.run = self.call, self.run
        return self

    def __exit__(self, *_: object) -> None:
        core._call, native.run = self._call, self._run

    def _gate(self, dataset: str) -> Gate | None:
        return self.gates.get("/".join(dataset.split("/")[:2]))

    def call(self, what: str, subject: str, *args: Any) -> Any:
        gate = self._gate(subject)
        if gate is None:
            return self._call(what, subject, *args)

        def whole() -> Any:
            return self._call(what, subject, *args)

        if what == "channel_program_nosync":
            if gate.dead:
                raise Stopped
            return whole()
        half = None
        if what in ("create", "clone"):
            *names, given = args
            native_only = {k: v for k, v in given.items() if b":" not in k}
            if native_only != given:

                def half() -> Any:
                    self._call(what, subject, *names, native_only)

        return gate.through(what, whole, half)

    def dump(self, container: str) -> dict[str, Any]:
        found = self._call(
            "channel_program_nosync",
            container,
            container.partition("/")[0].encode(),
            DUMP,
            core.INSTRUCTION_LIMIT,
            core.MEMORY_LIMIT,
            {
                b"container": container.encode(),
                b"holder": layout.HOLDER.encode(),
            },
        )
        return dict(core._decode(found))

    async def run(self, program: str, *arguments: str, **more: Any) -> Any:
        gate = self._gate(arguments[-1])
        if gate is None:
            return await self._run(program, *arguments, **more)
        gate.through(program, lambda: None)
        return await self._run(program, *arguments, **more)


def names(dump: dict[str, Any]) -> set[tuple[str, int]]:
    """What is there, for a comparison: names and guids, snapshots too."""
    return {(name, item["guid"]) for name, item in dump.items()} | {
        (f"{name}@{short}", snapshot["guid"])
        for name, item in dump.items()
        for short, snapshot in item["snapshots"].items()
    }
