# SPDX-License-Identifier: BSD-2-Clause
"""Operations that a user does with the qubes of a World.

An operation consists of steps. Each step is one call of the driver, and
records what the volume must contain after it.
"""

import types
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from ..support.model import Content
from .gate import Dump, Violated
from .world import MIB, Model, World

Operation = Callable[[World], Awaitable[None]]


async def _step(
    world: World,
    vid: str,
    after: Model,
    call: Callable[[], Awaitable[object]],
) -> None:
    """Do one step; a stop in it leaves the volume as before or as *after*."""
    world.pending = (vid, after)
    await call()
    world.model[vid] = after
    world.pending = None


async def _session(world: World, vid: str) -> None:
    await _start_volume(world, vid)
    await world.modify(vid)
    await _stop_volume(world, vid)


async def _start_volume(world: World, vid: str) -> None:
    await _step(world, vid, world.model[vid], world.volumes[vid].start)


async def _stop_volume(world: World, vid: str) -> None:
    volume, now = world.volumes[vid], world.model[vid]
    await _step(world, vid, now.stopped(), volume.stop)


async def _create_volume(world: World, vid: str) -> None:
    volume = world.volumes[vid]
    created = world.model[vid].created(Content("", volume.content.size))
    await _step(world, vid, created, volume.create)


async def _remove_volume(world: World, vid: str) -> None:
    world.going = world.guids(vid)
    after = world.model[vid].removed()
    await _step(world, vid, after, world.volumes[vid].remove)
    world.removed |= world.going


async def create(world: World) -> None:
    await _create_volume(world, "new/private")


async def clone(world: World) -> None:
    """Create a volume and import another one, as qvm-clone does."""
    await _create_volume(world, "new/private")
    await _copy(world, "app/private", "new/private")


async def _copy(world: World, source: str, target: str) -> None:
    content = world.model[source].committed
    after = world.model[target].imported(content)
    volume, origin = world.volumes[target], world.volumes[source]
    await _step(world, target, after, lambda: volume.import_volume(origin))


async def import_volume(world: World) -> None:
    await _copy(world, "src/private", "app/private")


async def start(world: World) -> None:
    await world.volumes["app/root"].start()
    await _start_volume(world, "app/private")
    await world.volumes["app/volatile"].start()
    world.mark_running("app", world.model["tmpl/root"].committed)
    await world.modify("app/private")
    world.volatile = world.new_tag("app/volatile")
    await world.write("app/volatile", world.volatile)


async def stop(world: World) -> None:
    # the domain is gone, but its volumes' state files exist until the end
    del world.running["app"]
    await world.volumes["app/root"].stop()
    await _stop_volume(world, "app/private")
    await world.volumes["app/volatile"].stop()
    world.mark_halted("app")


async def start_blank(world: World) -> None:
    """Start and stop a volume that is reset to blank at each start."""
    vid = "app/private"
    volume, now = world.volumes[vid], world.model[vid]
    qube = types.SimpleNamespace(features={"zfs.reset-on-start": "private"})
    volume.app = types.SimpleNamespace(domains={volume.qube: qube})
    after = now.reset()
    await _step(world, vid, after, volume.start)
    volume.app = None
    await _step(world, vid, after, volume.stop)


async def import_data(world: World) -> None:
    vid, size = "app/private", 4 * MIB
    volume = world.volumes[vid]
    path = await volume.import_data(size)
    tag = world.new_tag(vid)
    await world.write_to(path, tag)
    after = world.model[vid].imported(Content(tag, size))
    await _step(world, vid, after, lambda: volume.import_data_end(True))


async def import_failed(world: World) -> None:
    volume = world.volumes["app/private"]
    path = await volume.import_data(4 * MIB)
    await world.write_to(path, world.new_tag("half"))
    await volume.import_data_end(False)


async def revert(world: World) -> None:
    vid = "app/private"
    volume, now = world.volumes[vid], world.model[vid]
    await _step(world, vid, now.reverted(now.states[-2]), volume.revert)


async def _resize(world: World, size: int) -> None:
    vid = "app/private"
    volume, now = world.volumes[vid], world.model[vid]
    after = now.showing(replace(now.current, size=size))
    if "app" not in world.running:
        after = after.stopped()
    await _step(world, vid, after, lambda: volume.resize(size))


async def grow(world: World) -> None:
    await _resize(world, world.model["app/private"].current.size + 2 * MIB)


async def shrink(world: World) -> None:
    await _resize(world, world.model["app/private"].current.size - 2 * MIB)


async def export(world: World) -> None:
    volume = world.volumes["app/private"]
    path = await volume.export()
    seen = await world.read(path)
    if seen != world.model["app/private"].committed:
        raise Violated(f"an export shows {seen}")
    await volume.export_end(path)


async def update(world: World) -> None:
    """Start the template, write to it and stop it."""
    await _start_volume(world, "tmpl/root")
    world.mark_running("tmpl", None)
    await world.modify("tmpl/root")
    del world.running["tmpl"]
    await _stop_volume(world, "tmpl/root")
    world.mark_halted("tmpl")


async def remove(world: World) -> None:
    await world.volumes["app/root"].remove()
    await _remove_volume(world, "app/private")
    await world.volumes["app/volatile"].remove()


async def upgrade(world: World) -> None:
    """Clone a qube, use the clone, and remove the original."""
    await clone(world)
    await _session(world, "new/private")
    await remove(world)


async def remove_source(world: World) -> None:
    await _remove_volume(world, "src/private")


@dataclass(frozen=True)
class Rule:
    """An operation, and the worlds in which a user can do it.

    :ivar central: whether sequences of three use the operation
    """

    operation: Operation
    central: bool
    when: Callable[[World], bool]


def _halted(world: World) -> bool:
    return "app" not in world.running and _exists(world, "app/private")


def _exists(world: World, vid: str) -> bool:
    return world.model[vid].current is not None


def _readable(world: World) -> bool:
    """Return whether app/private can be exported.

    If snapshots are disabled, the volume of a running qube cannot.
    """
    return _halted(world) or (
        _exists(world, "app/private") and world.model["app/private"].keep >= 0
    )


def _size(world: World) -> int:
    return world.model["app/private"].current.size


RULES = {
    "create": Rule(create, True, lambda w: not _exists(w, "new/private")),
    "start": Rule(start, True, _halted),
    "stop": Rule(stop, True, lambda w: "app" in w.running),
    "import_data": Rule(import_data, True, _halted),
    "import_volume": Rule(
        import_volume,
        True,
        lambda w: _halted(w) and _exists(w, "src/private"),
    ),
    "revert": Rule(
        revert,
        True,
        lambda w: _halted(w) and len(w.model["app/private"].states) > 1,
    ),
    "remove": Rule(remove, True, _halted),
    "clone": Rule(
        clone, False, lambda w: _readable(w) and not _exists(w, "new/private")
    ),
    "upgrade": Rule(
        upgrade,
        False,
        lambda w: _halted(w) and not _exists(w, "new/private"),
    ),
    "import_failed": Rule(import_failed, False, _halted),
    "start_blank": Rule(
        start_blank,
        False,
        # the driver may leave a blank volume unchanged
        lambda w: _halted(w) and w.model["app/private"].current.tag != "",
    ),
    "grow": Rule(grow, False, lambda w: _exists(w, "app/private")),
    "shrink": Rule(shrink, False, lambda w: _halted(w) and _size(w) >= 4 * MIB),
    "export": Rule(export, False, _readable),
    "update": Rule(update, False, lambda w: True),
    "remove_source": Rule(
        remove_source, False, lambda w: _exists(w, "src/private")
    ),
}


async def at_rest(world: World) -> Dump:
    """Bring the world to the state that each sequence starts from.

    Only operations are used, so that they are tested here as well.
    """
    if "app" in world.running:
        await stop(world)
    if world.model["new/private"].current is not None:
        blank = world.model["new/private"]
        if blank.states == (Content("", blank.current.size),):
            # qubesd was killed before it wrote the new qube to qubes.xml;
            # the user creates it again
            await _create_volume(world, "new/private")
        await _remove_volume(world, "new/private")
    for vid in "tmpl/root", "src/private", "app/private":
        if world.model[vid].current is None:
            world.volumes[vid].content.size = 4 * MIB
            await _create_volume(world, vid)
            await world.check_volume(vid)
            await _session(world, vid)
            await world.check_volume(vid)
    if not world.model["app/private"].current.tag:
        await _session(world, "app/private")
        await world.check_volume("app/private")
    state_count = min(2, 1 + max(world.keep, 0))
    while len(world.model["app/private"].states) < state_count > 1:
        await _session(world, "app/private")
        await world.check_volume("app/private")
    if len(world.model["app/private"].states) > 1 + max(world.keep, 0):
        # a revert prunes nothing, so revisions of several reverts add up
        await _session(world, "app/private")
        await world.check_volume("app/private")
    if _size(world) != 4 * MIB:
        await _resize(world, 4 * MIB)
    return await world.check() if world.gate.passed else world.dump()
