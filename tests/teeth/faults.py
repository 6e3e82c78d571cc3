"""The faults: what is put in the place of what, and who should notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    :ivar name: what it breaks
    :ivar file: below ``qubes_storage_zfs``
    :ivar right: text that is there exactly once
    :ivar wrong: what takes its place
    :ivar tests: given to pytest
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def _zfs(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/zfs/test_{file}.py::test_{name}" for name in names)


_LUA = "zfs/programs/"

FAULTS = (
    Fault(
        "what did not change is committed again",
        _LUA + "commit.lua",
        "if argv.keep >= 0 and changed_since(newest, ds, current) then",
        "if argv.keep >= 0 then",
        _zfs("edges", "stop_twice_commits_once"),
    ),
    Fault(
        "a program can be ended between changes that belong together",
        _LUA + "common.lua",
        "while #list > 4 do",
        "while #list > 400 do",
        _zfs("crash", "killed_while_many_revisions_go"),
    ),
    Fault(
        "a revision too many is pruned",
        _LUA + "common.lua",
        "local others, spared = {}, keep + 1",
        "local others, spared = {}, keep",
        _zfs("life", "revert_and_its_undo"),
    ),
    Fault(
        "a revision that a volume begins with is pruned",
        _LUA + "common.lua",
        "if argv.pinned == nil or item.number ~= argv.pinned then",
        "if true then",
        _zfs("features", "reset_to_a_revision_which_stays"),
    ),
    Fault(
        "a beginning is kept as a state that somebody left",
        _LUA + "common.lua",
        "if item.number == begun and begun ~= argv.pinned then",
        "if false then",
        _zfs("features", "reset_to_a_blank_state"),
    ),
    Fault(
        "what a qube left is gone on with",
        "session.py",
        "await core.sync(self.pool.zpool)",
        "pass",
        _zfs("features", "what_is_not_committed_is_kept_and_not_gone_on_with"),
    ),
    Fault(
        "an older revision is taken for the committed state",
        _LUA + "commit.lua",
        "    committed = snapshot\n",
        "",
        _zfs("life", "export_while_running_is_the_committed_state"),
    ),
    Fault(
        "what was not committed is lost by an import",
        _LUA + "adopt.lua",
        "if changed_since(newest, old, old_number) then",
        "if false then",
        _zfs("kept", "import_over_what_was_not_committed_keeps_it"),
    ),
    Fault(
        "changes are counted from somebody else's snapshot",
        _LUA + "common.lua",
        'return (zfs.get_prop(ds, "written@" .. short)) > most_untouched(ds)',
        'return (zfs.get_prop(ds, "written")) > 0',
        _zfs("kept", "import_over_what_was_not_committed_keeps_it"),
    ),
    Fault(
        "a promotion takes somebody else's snapshots along",
        _LUA + "adopt.lua",
        'if string.match(snapshot, "@r[1-9]%d*$") == nil then',
        "if false then",
        _zfs("peers", "foreign_snapshots_neither_hide_changes_nor_go"),
    ),
    Fault(
        "the janitor takes what others put beside our volumes",
        _LUA + "garbage.lua",
        'if (zfs.get_prop(ds, "type")) ~= "volume" then\n        return false',
        'if (zfs.get_prop(ds, "type")) ~= "volume" then\n        return true',
        _zfs("peers", "what_others_put_beside_our_volumes_is_not_touched"),
    ),
    Fault(
        "the janitor takes somebody's written clone",
        _LUA + "garbage.lua",
        "return number > 0 and is_untouched_clone(ds)",
        "return true",
        _zfs("peers", "what_others_put_beside_our_volumes_is_not_touched"),
    ),
    Fault(
        "the janitor takes an open export",
        "container.py",
        'if item["name"] in self.in_hand:\n            return False',
        'if item["name"] in self.in_hand:\n            pass',
        _zfs("edges", "second_set_of_objects_shares_the_janitor"),
    ),
    Fault(
        "the janitor takes what another process has in hand",
        "container.py",
        "return _process_mark(int(parts[1])) == mark",
        "return False",
        _zfs("edges", "what_another_process_holds_is_left_alone"),
    ),
    Fault(
        "a clone without its mark stays for ever",
        _LUA + "garbage.lua",
        'return (zfs.get_prop(ds, "written")) <= most_untouched(ds)',
        'return (zfs.get_prop(ds, "written")) <= 0',
        _zfs(
            "edges",
            "clone_cut_off_before_its_mark_is_collected_after_an_import",
        ),
    ),
    Fault(
        "an import first forgets what was there",
        "transfer.py",
        "try:\n                await self.generations.adopt(\n                    number,",
        "try:\n                await self.generations.forget()\n                await self.generations.adopt(\n                    number,",
        _zfs("peers", "import_keeps_the_old_revisions"),
    ),
    Fault(
        "a running volume is reverted",
        "volume.py",
        "if self.is_running():\n                raise refusal(what, sentences.RUNNING)\n            await self._begin()\n            await self._end_abandoned_import(what)\n            state",
        "await self._begin()\n            await self._end_abandoned_import(what)\n            state",
        _zfs("edges", "what_is_refused_while_the_qube_runs"),
    ),
    Fault(
        "a revert prunes what it reverts from",
        "volume.py",
        "lambda: contextlib.nullcontext(snapshot), state, promote=True",
        "lambda: contextlib.nullcontext(snapshot), state, promote=True, keep=0",
        _zfs("life", "revert_and_its_undo"),
    ),
    Fault(
        "a volume that is there is created anew",
        "volume.py",
        "if state.blank and not self.is_running():",
        "if state.current is not None:",
        _zfs("edges", "name_of_a_volume_that_is_left_is_refused"),
    ),
    Fault(
        "a wrong shrink cannot be undone",
        "volume.py",
        "if size < before and halted and keep > 0:\n                await self.generations.commit(keep)\n            if size",
        "if size",
        _zfs("kept", "shrink_of_what_was_not_committed_is_undone"),
    ),
    Fault(
        "another pool's mark is not looked at",
        "pool.py",
        "if state.owner != self.name:",
        "if False:",
        _zfs("pool", "pool_that_finds_anothers_mark_is_absent"),
    ),
    Fault(
        "a link to another volume is believed",
        "zfs/device.py",
        "if name_of_node(path) != dataset:\n        return False",
        "if not os.path.exists(path):\n        return False",
        _zfs("edges", "link_to_another_volume_is_not_believed"),
    ),
    Fault(
        "what a crash left of an export stays",
        _LUA + "state.lua",
        "out.frozen = #frozen > 0",
        "out.frozen = false",
        _zfs("edges", "stop_drops_what_a_crash_left_of_an_export"),
    ),
    Fault(
        "what is open while it is pruned stays",
        "generations.py",
        "if left:",
        "if False:",
        _zfs("kept", "what_is_open_while_it_is_pruned_goes_then"),
    ),
    Fault(
        "what was kept for a clone alone stays without it",
        "container.py",
        "await self.sweep_again(left.values())",
        "pass",
        _zfs("kept", "what_was_kept_for_another_pools_clone_goes_with_it"),
    ),
    Fault(
        "an import is refused because somebody looks",
        "zfs/device.py",
        "await retry_busy(dataset, look, GLANCE_LIMIT)",
        "await retry_busy(dataset, look, 0)",
        _zfs("edges", "import_ends_though_somebody_looks"),
    ),
    Fault(
        "busy is final",
        "zfs/device.py",
        "if loop.time() >= end:",
        "if True:",
        _zfs("kept", "what_is_open_for_a_moment_is_waited_for"),
    ),
    Fault(
        "a lock that was not got in time is a refusal",
        "zfs/device.py",
        "if exc.errno != ERESTARTSYS:\n                raise",
        "raise",
        (
            "tests/unit/test_device.py::test_a_lock_not_got_in_time_is_tried_again",
        ),
    ),
    Fault(
        "random-looking data is taken for an empty disk",
        "zfs/blank.py",
        "if file.read(EDGE) != bytes(EDGE):\n                return False",
        "if file.read(EDGE) != bytes(EDGE):\n                return True",
        ("tests/unit/test_blank.py",),
    ),
    Fault(
        "a copy stops at the first hole",
        "zfs/copy.py",
        "if length < BLOCK or buffer != zeroes:\n                _write(writer, view[:length], offset)",
        "if buffer == zeroes:\n                break\n            _write(writer, view[:length], offset)",
        _zfs("pool", "copy_between_zpools_is_sparse"),
    ),
    Fault(
        "the removed volume's data stays in its cloned generation",
        _LUA + "forget.lua",
        "if zfs.sync.rollback(ds) ~= 0 then",
        "if false then",
        _zfs("kept", "removal_frees_what_no_clone_needs"),
    ),
    Fault(
        "a removed source's revisions go to its clone",
        _LUA + "forget.lua",
        "if own_property(qube, argv.pointer) ~= nil then",
        "if false then",
        _zfs("peers", "name_of_a_removed_source_can_be_used_again"),
    ),
    Fault(
        "a per cent sign reaches the client",
        "errors.py",
        '.replace("%", "%%")',
        "",
        ("tests/unit/test_package.py",),
    ),
    Fault(
        "a name with a slash or an @ gets through",
        "layout.py",
        '_VOLUME = re.compile(r"[a-z0-9][a-z0-9_-]*\\Z")',
        '_VOLUME = re.compile(r"[a-z0-9].*\\Z")',
        ("tests/unit/test_layout.py",),
    ),
    Fault(
        "a resize that cannot be committed forgets the new size",
        "volume.py",
        """            self._size = size
            if halted and keep >= 0:
                await self.generations.commit(keep)
""",
        """            if halted and keep >= 0:
                await self.generations.commit(keep)
            self._size = size
""",
        _zfs("edges", "resize_that_cannot_be_committed_has_resized"),
    ),
    Fault(
        "what a session wrote is there in the next",
        _LUA + "reset.lua",
        "if is_touched(ds, beginning(ds)) then\n    local errno",
        "if false then\n    local errno",
        _zfs("ready", "what_was_written_is_gone_after_stop"),
    ),
    Fault(
        "a clone of the past is used again",
        _LUA + "common.lua",
        "return fresh == true",
        "return true",
        _zfs("ready", "a_clone_of_the_past_is_not_used_by_a_new_qubesd"),
    ),
    Fault(
        "clones made ready keep what their source has no more",
        "session.py",
        "clones = [each for each in self.pool.clones_of(self) if each._ready]",
        "clones: list[ZfsVolume] = []",
        _zfs("ready", "committed_source_frees_its_old_state"),
    ),
    Fault(
        "a source that is committed meanwhile is not noticed",
        "session.py",
        "if times != self._source_times():",
        "if False:",
        _zfs("ready", "source_committed_while_its_clone_stops"),
    ),
    Fault(
        "somebody else's snapshot is gone back to",
        _LUA + "reset.lua",
        "    if is_touched(ds, beginning(ds)) then\n        return refuse",
        "    if false then\n        return refuse",
        _zfs("ready", "somebody_elses_snapshot_is_not_gone_back_to"),
    ),
    Fault(
        "each volume of a qube waits for a transaction group of its own",
        "zfs/channel.py",
        "if self._waiting and len(self._waiting) >= self.members:",
        "if self._waiting:",
        _zfs("counts", "calls_of_each_verb"),
    ),
    Fault(
        "a verb goes on with a key that is being forgotten",
        "key.py",
        "await asyncio.wait([self._forgetting])",
        "pass",
        _zfs("encrypted", "verb_that_begins_while_the_key_goes_asks"),
    ),
    Fault(
        "a volume is made ready though it was removed",
        "volume.py",
        "self._ready, self._due, self._given = False, False, None",
        "self._ready, self._given = False, None",
        _zfs("ready", "verb_that_comes_before_the_preparation"),
    ),
    Fault(
        "a preparation that fails destroys what a removed qube left",
        "session.py",
        "if self._owns(await self._state()):",
        "if True:",
        _zfs("ready", "preparation_leaves_alone_what_a_removed_qube_left"),
    ),
    Fault(
        "a stop forgets to make the next start ready",
        "session.py",
        "        if self._due:\n            self._prepare_later()",
        "        if False:\n            self._prepare_later()",
        _zfs("ready", "what_was_written_is_gone_after_stop"),
    ),
    Fault(
        "what dom0's page cache holds is not committed",
        "zfs/device.py",
        "        write_out(fd)\n",
        "        pass\n",
        _zfs("edges", "stop_commits_what_is_in_the_page_cache"),
    ),
)
