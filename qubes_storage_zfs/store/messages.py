# SPDX-License-Identifier: BSD-2-Clause
"""Texts for a person: one template for each failure, with its remedy.

A Failure names its template when it is raised.  For any other exception,
:py:data:`TEMPLATES` has the template of its class.  reason() fills in the data of
the exception.  doc/errors.md lists the templates, and a test compares the two.
qubesd and the tools show the same texts.
"""

from collections.abc import Mapping

from ..zfs import errors as zfs
from ..zfs.errors import Failure
from ..zfs.probe import DeviceRefused

NO_MODULE = (
    "the zfs kernel module is not loaded, or python3-pyzfs is not installed,"
    " in dom0; run 'sudo modprobe zfs' (after a kernel update, 'dkms status'"
    " shows whether the module was built for the new kernel)"
)
POOL_ABSENT = (
    "the zpool {dataset} is not imported; connect its disk, open its LUKS"
    " device if it has one, and run 'sudo qvm-zfs attach' with the pool's"
    " name in dom0"
)
NO_ZPOOL = (
    "the zpool {dataset} is not imported; connect its disk and run"
    " 'sudo qvm-zfs attach --zpool {dataset}' in dom0"
)
ZPOOL_READ_ONLY = (
    "the zpool {zpool} is imported read-only, so no qube in it can start; run"
    " 'sudo zpool export {zpool}' and then 'sudo qvm-zfs attach' with the"
    " pool's name in dom0"
)
ZPOOL_SUSPENDED = (
    "the zpool {zpool} is suspended, because one of its disks failed or was"
    " disconnected; reconnect the disk and run 'sudo zpool clear {zpool}' in"
    " dom0 ('zpool status {zpool}' names the disk)"
)
ZPOOL_SILENT = (
    "the zpool {zpool} does not answer, probably because one of its disks does"
    " not; look for disk errors with 'sudo dmesg' in dom0"
)
DATASET_READ_ONLY = (
    "{dataset} has readonly=on, so a qube could not write to its volumes; run"
    " 'sudo zfs set readonly=off {dataset}' in dom0"
)
KEY_IS_NO_PASSPHRASE = (
    "the key of {dataset} is not a passphrase (keyformat={keyformat}); load"
    " it with 'sudo zfs load-key {dataset}' in dom0, then set a passphrase"
    " with 'sudo zfs change-key -o keyformat=passphrase -o keylocation=prompt"
    " {dataset}'"
)
CONTAINER_MISSING = (
    "the dataset {dataset} does not exist; if it was renamed, rename it back"
    " with 'sudo zfs rename' in dom0; if it was destroyed, restore it from a"
    " backup or remove the pool"
)
CONTAINER_CLAIMED = (
    "the dataset {dataset} belongs to the pool {owner}; if that pool no"
    " longer exists, run 'sudo zfs inherit {property} {dataset}' in dom0"
)
CONTAINER_UNMARKED = (
    "the dataset {dataset} is not marked as the container of the pool {pool};"
    " if it is that container, run 'sudo zfs set {property}={pool} {dataset}'"
    " in dom0"
)
CONTAINER_BARE = (
    "{dataset} was received without its properties, which name the current"
    " generation of each volume; receive it again from 'zfs send -R' ('zfs"
    " send -Rw' for an encrypted pool), see moving-zpools.md in the package's"
    " documentation"
)
NO_SPACE = (
    "no space left for {dataset} (the zpool is full, or a quota applies);"
    " remove qubes or revisions, raise the quota, or enlarge the zpool"
)
BUSY = "{dataset} is in use by {holders}; stop using it and try again"
BUSY_NOBODY = (
    "{dataset} was busy for too long, but no process or device was found that"
    " uses it; try again"
)
LOCKED = (
    "the encryption key of {dataset} is not loaded; start a qube in its pool,"
    " or run 'sudo qvm-zfs unlock' in a dom0 terminal"
)
WRONG_PASSPHRASE = "the passphrase was wrong at each attempt; try again"
NO_NEW_PASSPHRASE = (
    "the passphrases did not match, or were not 8 to 512 bytes long; try"
    " again"
)
BAD_ANSWER = (
    "the passphrase prompt returned invalid input (expected one line of"
    " text); try again"
)
ASKS_IN = (
    "Cannot remove {qube}: the pool {pool} shows its passphrase prompt there"
    " (ask_password_domain); remove the pool first, or see encryption.md in"
    " the package's documentation"
)
DELAYED = (
    "the last passphrase prompt did not unlock the pool, so qubesd shows no"
    " other prompt before {time}; to enter the passphrase now, run 'sudo"
    " qvm-zfs unlock {pool}' in a dom0 terminal"
)
NO_ANSWER = (
    "no passphrase was entered, because the standard input ended; run the"
    " command again"
)
BAD_ITERATIONS = (
    "{dataset} has pbkdf2iters={iterations}, which is not a number from 100000 to"
    " 100000000, so deriving its key might take hours; if you set it, run"
    " 'sudo zfs load-key {dataset}' and 'sudo zfs change-key -o"
    " pbkdf2iters=350000 {dataset}' in dom0; if not, another system changed the"
    " disk: see disasters.md in the package's documentation"
)
UNPROTECTED = (
    "the process that reads the passphrase could not protect its memory"
    " ({protection}), so no prompt was shown; run as root with CAP_IPC_LOCK, and free"
    " memory if it is short"
)
SILENT_KEYHOLDER = (
    "the process that derives the key of {dataset} did not respond for"
    " {seconds} s and was killed; check that its zpool responds ('zpool"
    " status'), then try again"
)
TOO_OLD_TO_ENCRYPT = (
    "an encrypted pool needs OpenZFS 2.3.3 or newer, because older versions"
    " can lose encrypted data; update OpenZFS in dom0"
)
NESTED_KEYS = (
    "{dataset} is already encrypted (encryption root {root}); encrypted pools"
    " cannot be nested, choose an unencrypted dataset"
)
NOT_A_ROOT = (
    "{dataset} exists, but is not an encryption root with"
    " keyformat=passphrase; choose another pool name or zpool_name"
)
FOREIGN_ROOT = (
    "{dataset} exists, but was not created by this driver; choose another"
    " pool name or zpool_name"
)
NO_DEVICE = (
    "the device of {dataset} did not appear, probably because systemd-udevd"
    " does not run; check 'systemctl status systemd-udevd' in dom0, then run"
    " 'sudo udevadm trigger --subsystem-match=block'"
)
NO_PARENT = "the parent dataset of {dataset} does not exist; create it first"
NOT_A_FILESYSTEM = (
    "{dataset} is a {type}, not a filesystem; choose a filesystem or a new"
    " name"
)
IN_ANOTHER_POOL = (
    "{dataset} is inside the qubes root of another pool; choose another"
    " container"
)
HOME_EXISTS = (
    "{dataset} exists, but was not created by this driver; choose another"
    " container"
)
NOT_FOUND = (
    "{dataset} does not exist, or was destroyed meanwhile; run 'zfs list -t"
    " all' in dom0 to see what exists"
)
EXISTS = "{dataset} already exists; choose another name, or try again"
NAME_TOO_LONG = "the name {dataset} is too long for ZFS; choose a shorter name"
NAME_NOT_SUPPORTED = (
    "this driver does not support the {kind} name '{name}', though ZFS does;"
    " use a {kind} whose name has only letters, digits and {signs}"
)
COMMAND_FAILED = "{command}: {output}"
DEVICE_REFUSED = "{device} {reason}"
OTHER = (
    "ZFS refused '{call}' for {dataset} ({code}); look for errors with 'zpool"
    " status' and 'sudo dmesg' in dom0"
)

MISSING_VOLUME = (
    "the volume is missing on disk: {dataset} has no generation of it; if it"
    " was destroyed by mistake, restore the qube from a backup"
)
MISSING_SOURCE = (
    "its source {source} is missing on disk; restore that volume from a"
    " backup, or choose another template"
)
VOLUME_EXISTS = (
    "a volume of this name already exists, left by a qube that was removed"
    " while the pool was absent; choose another name, or, if nothing in"
    " {dataset} is needed, run 'sudo zfs destroy -r {dataset}' in dom0"
)
RUNNING = "the qube is running; shut it down first"
SHRINK_RUNNING = (
    "a volume cannot be made smaller while its qube runs; shut the qube down"
    " first"
)
READ_ONLY = (
    "the volume is read-only; run 'qvm-volume config' with 'rw true' first"
)
SIZE_OF_SOURCE = (
    "the volume is cloned from {source} at each start and has its size; run"
    " 'qvm-volume resize {source} SIZE' in dom0 instead"
)
NO_REVISION = (
    "there is no revision {revision}; 'qvm-volume info' lists the revisions"
)
REVISION_IS_CURRENT = (
    "{revision} is the committed state that the volume has now, because its"
    " last session wrote nothing; 'qvm-volume info' lists the revisions to"
    " revert to"
)
NO_REVISIONS = "the volume has no revision to revert to"
NOTHING_TO_RESET_TO = (
    "there is no revision {revision}, which the feature zfs.reset-on-start"
    " names; choose another one ('qvm-volume info {qube}:{volume}' lists"
    " them), or run 'qvm-features --unset {qube} zfs.reset-on-start'"
)
SNAPSHOTS_DISABLED = (
    "the volume keeps no revisions (revisions_to_keep is -1), so its"
    " committed state cannot be read while its qube runs; shut the qube down"
    " first"
)
IMPORT_RUNNING = (
    "an import into this volume is running ({holders}); wait until it"
    " finishes, then try again"
)
IMPORT_REPLACED = (
    "another import into this volume started before this one finished, and"
    " wrote no data; import again"
)
NO_IMPORT = "no import into this volume is running; start the import again"
BAD_SIZE = (
    "{size} is not a valid volume size; use a number of bytes, at most 1 EiB"
)
BOTH_KINDS = (
    "a volume cannot both start as a copy of another and save its changes;"
    " set only one of snap_on_start and save_on_stop"
)
NO_SPACE_FOR_COPY = (
    "copying {source} needs {needed} bytes, but the pool {pool} has only"
    " {free} bytes free; remove qubes or revisions there"
)
COPY_FAILED = (
    "reading or writing the data failed: {reason}; 'sudo dmesg' in dom0 shows"
    " disk errors"
)


# --- names and options

BAD_VID = (
    "{vid!r} is not a valid volume name here; use <qube>/<volume> with"
    " letters, digits, - and _ (and . in the qube's name)"
)
LONG_VID = (
    "the name {dataset} is too long for ZFS; choose a shorter name for the"
    " container or the qube"
)
BAD_REVISION = (
    "{revision!r} is not the name of a revision; 'qvm-volume info' lists the"
    " revisions"
)
BAD_DATASET = (
    "{name!r} is not a valid name for a ZFS dataset; use letters, digits, - _"
    " and . between the slashes"
)
BAD_ZPOOL = (
    "{name!r} is not a valid name for a zpool; choose a name that starts with"
    " a letter"
)
LONG_NAME = "the {kind} name {name} is too long; choose a shorter name"
RESERVED_ZPOOL = (
    "{name!r} cannot name a zpool, because ZFS reserves or forbids this name;"
    " give the pool another name"
)
BAD_OPTION = "{name} must be {allowed}, not {value!r}"
BAD_DEDUP = (
    "dedup must be off or {on}, not {value!r}; dedup slows down the whole"
    " zpool until the last block written with it is gone"
)

# --- what qvm-zfs attach and detach say

ZPOOL_NOWHERE = (
    "the zpool {zpool} was not found on the disks of dom0; connect its disk,"
    " and open its LUKS device if it has one ('sudo cryptsetup open')"
)
ZPOOL_IS_ANOTHER = (
    "the pool {pool} is on the zpool {zpool} with the GUID {guid}, but the"
    " one of that name {where} has the GUID {other}; connect the pool's own"
    " disk, or, if you moved the pool with 'zfs send', see moving-zpools.md"
    " in the package's documentation"
)
SEVERAL_CLAIMS = (
    "several datasets are marked as the container of the pool {pool}, which"
    " qubesd does not have: {datasets}; disconnect the disk of the wrong one,"
    " or run 'sudo zfs inherit qubes-storage-zfs:pool' with the wrong dataset"
)
ZPOOL_SEVERAL = (
    "several zpools have the name {zpool} (GUIDs {guids}), and qubes.xml does"
    " not record which one has the pool {pool}; disconnect the disks of all"
    " but one"
)
ZPOOL_ELSEWHERE = (
    "another system used the zpool {zpool} last and did not export it; run"
    " 'sudo zpool export {zpool}' there, or, if no other system uses the"
    " zpool any more, run this command once with --force"
)
ZPOOL_BROKEN = (
    "the zpool {zpool} cannot be imported: {status} ({devices}); run 'sudo"
    " zpool import' in dom0 to see the details"
)
DISK_CHANGED = (
    "{dataset} has {property}={value} instead of {wanted}, so dom0 could read"
    " data that qubes wrote, or data could be unencrypted; if you changed it,"
    " {remedy}; if not, another system changed the disk: see disasters.md in"
    " the package's documentation"
)
DISK_REMEDY = "run 'sudo zfs {command}' in dom0"
DISK_REMEDY_MOVE = "move that dataset out of the pool with 'sudo zfs rename'"
ZPOOL_PROPERTY = (
    "the zpool {zpool} has {property}={value} instead of {wanted}, which"
    " could not be changed, so the zpool was exported again; look for the"
    " reason with 'sudo dmesg' in dom0"
)
ZPOOL_OTHER_NAME = (
    "the zpool listed as {zpool} was imported with the name {name}, so it was"
    " exported again; disconnect other disks and try again"
)
ZPOOL_NAMES = (
    "the zpool with the GUID {guid} has several names on the connected disks"
    " ({names}); disconnect the disk that does not belong to it"
)
ZPOOLS_OF_A_NAME = (
    "several zpools have the name {zpool} (GUIDs {guids}); disconnect the"
    " disks of all but one"
)
ZPOOL_HAS_POOLS = (
    "qubesd already uses the zpool {zpool} for {pools}; run 'sudo qvm-zfs"
    " attach {pool}'"
)
RECORD_REFUSED = (
    "{dataset} has {property}={value}, which 'qvm-zfs adopt' does not write, so"
    " nothing was changed; if you did not set it, another system changed the"
    " disk: see disasters.md in the package's documentation"
)
NOT_SAVED = (
    "dom0 has no record of the migration of {pool} (an older version of this"
    " package or another dom0 migrated it), and the record on the disk is not"
    " trusted; see moving.md in the package's documentation"
)
OTHER_ADOPTION = (
    "the record on {container} is not what dom0 recorded when the pool {pool}"
    " was migrated, or the zpool is another one, so nothing was changed; see"
    " moving.md in the package's documentation"
)
POOL_IN_USE = "{zpool} is in use: {users}; stop using it and try again"
NOT_ATTACHED_AGAIN = (
    "the pool {pool} is detached, but 'qvm-zfs attach' will refuse it: {why}"
)
ADOPTED_BUT = (
    "the pool {pool} was not migrated: {why}; correct that and repeat this"
    " command, or undo the migration with 'sudo qvm-zfs adopt --undo --apply"
    " {pool}'"
)
ZPOOL_STAYS = (
    "{zpool} is still imported, and its keys are unloaded: {reason}; stop"
    " using it and try again"
)


# --- what the other subcommands of qvm-zfs say

NO_QUBES_XML = (
    "{path}, which lists the pools, cannot be read: {reason}; start qubesd,"
    " or restore the file"
)
NO_POOL = "there is no ZFS pool {pool}; 'qvm-zfs status' lists them"
POOL_UNKNOWN = "qubesd has no ZFS pool {pool}; 'qvm-pool list' lists its pools"
NOT_A_ZPOOL = (
    "{name} is a dataset, not a zpool; give the name before the first slash"
)
NOT_ENCRYPTED = (
    "the pool {pool} is not encrypted, so it has no key; 'qvm-zfs status'"
    " lists the encrypted pools (zfs_encrypted)"
)
NO_ENCRYPTED_POOL = (
    "there is no encrypted pool; 'qvm-zfs status' lists all pools"
)
DATASET_ABSENT = (
    "{dataset} does not exist, or its zpool is not imported; run 'sudo"
    " qvm-zfs attach' with the pool's name"
)
STAYS_UNLOCKED = (
    "{dataset} is still unlocked, because this driver does not support its"
    " name; run 'sudo zfs unload-key' with the name in quotes"
)
CHANGED_BUT = (
    "the passphrase of {pool} was changed, but the pool is still unlocked:"
    " {holders}; stop using it and run 'sudo qvm-zfs lock {pool}'"
)

# --- what qvm-zfs adopt says

QUBESD_RUNS = (
    "qubesd is running; shut down the qubes of the pool, run 'sudo systemctl"
    " stop qubesd', then repeat this command"
)
ADOPT_DRIVER = (
    "the pool {pool} is not on ZFS (its driver is {driver}); see moving.md in"
    " the package's documentation"
)
ADOPT_OURS = (
    "the pool {pool} already uses this driver, so there is nothing to migrate"
)
ADOPT_VID = (
    "the volume {volume} of {qube} has the vid {vid!r}, which does not start"
    " with {start}; see moving.md in the package's documentation"
)
ADOPT_NO_FILESYSTEM = (
    "the filesystem {dataset} does not exist; import its zpool first"
)
ADOPT_CLAIMED = (
    "{dataset} belongs to the pool {pool}; if that pool no longer exists, run"
    " 'sudo zfs inherit qubes-storage-zfs:pool {dataset}'"
)
ADOPT_HOME_EXISTS = (
    "{dataset} exists, but the migration creates a dataset of that name;"
    " rename it (if it belongs to a qube, clone the qube under another name)"
)
ADOPT_NO_DATASET = (
    "the dataset {dataset} does not exist; import its zpool first"
)
ADOPT_BOTH = "{old} and {new} both exist; rename one of them"
ADOPT_NOT_A_QUBE = (
    "{dataset} is a {type}, but the dataset of a qube must be a filesystem;"
    " rename it"
)
ADOPT_NO_VOLUME = "{dataset} is not a zvol, so it cannot be a volume; rename it"
ADOPT_UNSAFE = (
    "{dataset} has {property}={value}, so dom0 would read data that a qube"
    " wrote; run 'sudo zfs inherit {property} {dataset}'"
)
ADOPT_OUR_NAME = (
    "qubesd does not know {dataset}, and its name looks like one that this"
    " driver gives; rename it"
)
ADOPT_NEARLY_EMPTY = (
    "qubesd does not know {dataset}, which is nearly empty; destroy it, or"
    " keep it with 'sudo zfs snapshot {dataset}@keep'"
)
ADOPT_OUR_SNAPSHOT = (
    "{snapshot} has a name that this driver uses itself; rename the snapshot"
)
ADOPT_HAS_SNAPSHOTS = (
    "{dataset} has snapshots, although qubesd discards its content at stop;"
    " destroy the snapshots if they are not needed"
)
ADOPT_BAD_NAME = "this driver does not support the name {name!r}; rename it"
ADOPT_IN_USE = "{dataset} is in use by {holders}; stop using it first"
NOT_ADOPTED = "the pool {pool} was not migrated, so there is nothing to undo"
UNDO_MADE_SINCE = (
    "{dataset} was created after the migration; remove the qube, or rename"
    " the dataset"
)
UNDO_STARTED = (
    "{qube} was started after the migration ({volume}), so the migration"
    " cannot be undone"
)
UNDO_CHANGED = (
    "{volume} of {qube} {change} after the migration, so the migration cannot"
    " be undone"
)
UNDO_OLD_EXISTS = (
    "{dataset} exists again, but undoing creates a dataset of that name;"
    " rename it"
)
RECORD_POOL_NAME = (
    "the pool {pool!r} cannot be migrated, because its name has other"
    " characters than letters, digits, - _ and . and cannot name a record"
    " file"
)
RECORD_NOT_WRITTEN = (
    "{path}, which --undo needs, cannot be written: {reason}; correct that"
    " and repeat this command"
)
RECORD_NOT_OURS = (
    "{path} is not what 'qvm-zfs adopt' wrote there; undo by hand with the"
    " earlier copy of qubes.xml, see moving.md in the package's documentation"
)
FILE_NOT_READ = (
    "{path} cannot be read: {reason}; correct that and repeat this command"
)
XML_NO_POOL = "{path} has no pool {pool}; check the name of the pool"
XML_NOT_BOOLEAN = (
    "{path} has {attribute}={value!r} for a volume of {qube}; it must be True"
    " or False"
)
XML_CHANGED = (
    "{path} was not written, because qubesd runs again or the file was"
    " changed; run 'sudo systemctl stop qubesd', then repeat this command"
)
XML_NOT_WRITTEN = (
    "{path} cannot be written: {reason}; correct that and repeat this command"
)


class Refused(Failure):
    """An operation that was refused before it changed anything."""


#: kind of exception -> its template; a kind that is not here has the template
#: of its base class
TEMPLATES: Mapping[type[Exception], str] = {
    zfs.ZfsError: OTHER,
    zfs.NoModule: NO_MODULE,
    zfs.PoolAbsent: POOL_ABSENT,
    zfs.ReadOnlyZpool: ZPOOL_READ_ONLY,
    zfs.Suspended: ZPOOL_SUSPENDED,
    zfs.SilentZpool: ZPOOL_SILENT,
    zfs.ReadOnlyDataset: DATASET_READ_ONLY,
    zfs.NoPassphrase: KEY_IS_NO_PASSPHRASE,
    zfs.NotFound: NOT_FOUND,
    zfs.Exists: EXISTS,
    zfs.NameTooLong: NAME_TOO_LONG,
    zfs.NoSpace: NO_SPACE,
    zfs.Busy: BUSY_NOBODY,
    zfs.InUse: BUSY,
    zfs.NoDevice: NO_DEVICE,
    zfs.Locked: LOCKED,
    zfs.WrongPassphrase: WRONG_PASSPHRASE,
    zfs.NoNewPassphrase: NO_NEW_PASSPHRASE,
    zfs.BadAnswer: BAD_ANSWER,
    zfs.NoAnswer: NO_ANSWER,
    zfs.BadIterations: BAD_ITERATIONS,
    zfs.Unprotected: UNPROTECTED,
    zfs.Silent: SILENT_KEYHOLDER,
    zfs.CommandFailed: COMMAND_FAILED,
    DeviceRefused: DEVICE_REFUSED,
    OSError: COPY_FAILED,
}


def reason(exc: Failure | zfs.ZfsError | OSError) -> str:
    """Return the message for *exc*."""
    if isinstance(exc, Failure):
        return str(exc)
    kinds = type(exc).__mro__
    template = next(TEMPLATES[kind] for kind in kinds if kind in TEMPLATES)
    if isinstance(exc, OSError):
        return template.format(reason=exc.strerror or str(exc))
    return template.format(**exc.data)
