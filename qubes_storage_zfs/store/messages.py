# SPDX-License-Identifier: BSD-2-Clause
"""Texts for a person: one template for each failure, with its remedy.

An exception names its template: a Failure when it is raised, any other by its
class, in :py:data:`TEMPLATES`.  reason() fills the template in with the
exception's data.  doc/errors.md lists the templates, and a test compares the
two.  qubesd's process and the tools show the same texts.
"""

from collections.abc import Mapping

from ..zfs import errors as zfs
from ..zfs.errors import Failure
from ..zfs.probe import DeviceRefused

NO_MODULE = (
    "the zfs kernel module or python3-pyzfs is missing in dom0;"
    " run 'sudo modprobe zfs' (after a kernel update 'dkms status' tells"
    " whether the module was built for the new one)"
)
POOL_ABSENT = (
    "the zpool {dataset} is not imported; connect its disk, open its LUKS"
    " device and run 'sudo qvm-zfs attach' with the pool's name in dom0"
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
    "the zpool {zpool} is suspended, because a disk of it failed or is gone;"
    " connect the disk again and run 'sudo zpool clear {zpool}' in dom0 ('zpool"
    " status {zpool}' names the disk)"
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
    " it with 'sudo zfs load-key {dataset}' in dom0, and give it a passphrase"
    " with 'sudo zfs change-key -o keyformat=passphrase -o keylocation=prompt"
    " {dataset}'"
)
CONTAINER_MISSING = (
    "the dataset {dataset} does not exist; was it renamed or destroyed?"
)
CONTAINER_CLAIMED = (
    "the dataset {dataset} belongs to the pool {owner}; if that pool is gone"
    " for good, run 'sudo zfs inherit {property} {dataset}' in dom0"
)
CONTAINER_UNMARKED = (
    "the dataset {dataset} is not marked as the pool {pool}'s; if it is, run"
    " 'sudo zfs set {property}={pool} {dataset}' in dom0"
)
CONTAINER_BARE = (
    "{dataset} was received without its properties, which name the current"
    " content of each volume; receive it again from 'zfs send -R' ('zfs send"
    " -Rw' for an encrypted pool), see moving-zpools.md in the package's"
    " documentation"
)
NO_SPACE = (
    "there is no space left for {dataset} (zpool full, or a quota above it);"
    " remove qubes or revisions, or enlarge the zpool"
)
BUSY = "{dataset} is in use by {holders}; end that and try again"
BUSY_NOBODY = "{dataset} was busy for too long; try again"
LOCKED = (
    "the encryption key of {dataset} is not loaded; start a qube in its pool,"
    " or run 'sudo qvm-zfs unlock' in a terminal of dom0"
)
WRONG_PASSPHRASE = "none of the answers was the passphrase"
NO_NEW_PASSPHRASE = (
    "no two answers were the same and of 8 to 512 bytes, as a new passphrase"
    " must be"
)
BAD_ANSWER = (
    "what answered the passphrase prompt was no person: no single line of text"
)
ASKS_IN = (
    "Cannot remove {qube}: the pool {pool} asks for its passphrase there"
    " (ask_password_domain); remove the pool first, or see encryption.md in the"
    " package's documentation"
)
DELAYED = (
    "the last passphrase prompt did not unlock the pool, so qubesd shows no"
    " other before {time}; to be asked now, run 'sudo qvm-zfs unlock {pool}' in"
    " a terminal of dom0"
)
NO_ANSWER = "no passphrase was given"
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
    "the process that derives the key of {dataset} did not answer for {seconds}"
    " seconds and was killed; see whether its zpool responds ('zpool status'),"
    " and try again"
)
TOO_OLD_TO_ENCRYPT = (
    "OpenZFS 2.3.3 or newer is needed for an encrypted pool: older ones have"
    " ways to lose encrypted data"
)
NESTED_KEYS = (
    "{dataset} is encrypted with the key of {root} already; to forget one key"
    " would take the volumes of the other away, so choose a dataset that is"
    " not encrypted"
)
NOT_A_ROOT = (
    "{dataset} exists and has no passphrase of its own (it must be an"
    " encryption root with keyformat=passphrase)"
)
FOREIGN_ROOT = "{dataset} exists and is not this driver's; choose another name"
NO_DEVICE = (
    "the device of {dataset} did not appear; is systemd-udevd running?"
    " 'sudo udevadm trigger --subsystem-match=block' in dom0 makes it look"
    " again"
)
NO_PARENT = "the dataset above {dataset} does not exist; create it first"
NOT_A_FILESYSTEM = "{dataset} is a {type}, not a filesystem"
IN_ANOTHER_POOL = "{dataset} is where another pool keeps its qubes"
HOME_EXISTS = (
    "{dataset} exists and is not this driver's; choose another container"
)
NOT_FOUND = "{dataset} does not exist (any more)"
EXISTS = "{dataset} exists already"
NAME_TOO_LONG = "the name {dataset} is too long for ZFS"
NAME_NOT_SUPPORTED = (
    "this driver does not support the {kind} name '{name}', though ZFS does;"
    " use a {kind} whose name has only letters, digits and {signs}"
)
COMMAND_FAILED = "{command}: {output}"
DEVICE_REFUSED = "{device} {reason}."
OTHER = "ZFS refused '{call}' for {dataset} ({code})"

MISSING_VOLUME = (
    "the volume is missing on disk: {dataset} has no content for it;"
    " was it destroyed by hand?"
)
MISSING_SOURCE = "its source {source} is missing on disk"
VOLUME_EXISTS = (
    "there is a volume of that name already, left by a qube that was removed"
    " while the pool was away; choose another name, or look at {dataset} in"
    " dom0 and run 'sudo zfs destroy -r {dataset}' if nothing in it is needed"
)
RUNNING = "the qube is running; shut it down first"
SHRINK_RUNNING = "a volume cannot be made smaller while its qube runs"
READ_ONLY = "the volume is read-only"
SIZE_OF_SOURCE = (
    "its size is that of {source}, which it is cloned from at each start;"
    " resize that volume ('qvm-volume resize {source} SIZE' in dom0)"
)
NO_REVISION = "there is no revision {revision}; 'qvm-volume info' lists them"
REVISION_IS_CURRENT = (
    "{revision} is the committed state that the volume has now: its last session"
    " wrote nothing; 'qvm-volume info' lists the revisions to go back to"
)
NO_REVISIONS = "the volume has no revision to go back to"
NOTHING_TO_RESET_TO = (
    "there is no revision {revision}, which the feature zfs.reset-on-start"
    " names; choose another ('qvm-volume info {qube}:{volume}' lists them), or"
    " 'qvm-features --unset {qube} zfs.reset-on-start'"
)
SNAPSHOTS_DISABLED = (
    "the volume keeps no revisions (revisions_to_keep is -1), so there is"
    " nothing committed to read while its qube runs; shut it down first"
)
IMPORT_RUNNING = "an import into this volume is under way ({holders})"
IMPORT_REPLACED = (
    "another import into this volume began before this one ended, and nothing"
    " was written by it; import again"
)
NO_IMPORT = "no import into this volume is under way"
BAD_SIZE = "{size} is not a size a volume can have"
BOTH_KINDS = (
    "a volume cannot both start as a copy of another and save its changes"
    " (snap_on_start and save_on_stop)"
)
NO_SPACE_FOR_COPY = (
    "copying {source} needs {needed} bytes and only {free} are free in the"
    " pool {pool}"
)
COPY_FAILED = "reading or writing the data failed: {reason}"


# --- names and options

BAD_VID = (
    "{vid!r} cannot name a volume here: it must be <qube>/<volume>, letters,"
    " digits and - _ (and . in the qube)"
)
LONG_VID = (
    "The name {dataset} is too long for ZFS: choose a container or qube with a"
    " shorter name"
)
BAD_REVISION = "{revision!r} is not a revision of a ZFS volume"
BAD_DATASET = "{name!r} is not a name a ZFS dataset can have"
BAD_ZPOOL = "{name!r} is not a name a zpool can have"
LONG_NAME = "The {kind} name {name} is too long"
RESERVED_ZPOOL = (
    "ZFS does not allow a zpool named {name!r}: give the pool another name"
)
BAD_OPTION = "{name} must be {allowed}, not {value!r}"
BAD_DEDUP = (
    "dedup must be off or {on}, not {value!r}: it slows down the whole zpool,"
    " and what was written with it stays that way"
)

# --- what qvm-zfs attach and detach say

ZPOOL_NOWHERE = (
    "the zpool {zpool} is on no disk that dom0 has; connect its disk and open"
    " its LUKS device ('sudo cryptsetup open'), if it is on one"
)
ZPOOL_IS_ANOTHER = (
    "the pool {pool} is on the zpool {zpool} with the guid {guid}, and the one"
    " of that name {where} has the guid {other}, so it is another disk's; if you"
    " moved the pool there with 'zfs send', see moving-zpools.md in the package's"
    " documentation"
)
SEVERAL_CLAIMS = (
    "several datasets are marked as the pool {pool}, and qubesd has no pool of"
    " that name: {datasets}; detach the disk of the wrong one, or run 'sudo zfs"
    " inherit qubes-storage-zfs:pool' with its dataset"
)
ZPOOL_SEVERAL = (
    "there are several zpools {zpool}, with the guids {guids}, and nobody noted"
    " which one the pool {pool} is on; disconnect the disks of all but one"
)
ZPOOL_ELSEWHERE = (
    "another machine had the zpool {zpool} last, or has it now, and did not"
    " export it; export it there ('sudo zpool export {zpool}'), or, if that"
    " machine is gone for good or was this one, add --force, once"
)
ZPOOL_BROKEN = "the zpool {zpool} cannot be imported: {status} ({devices})"
DISK_CHANGED = (
    "{dataset} has {property}={value} where {wanted} must be, so that dom0"
    " does not read what qubes wrote and keys protect all of it; if you changed"
    " it, {remedy}; if not, another system changed the disk: see disasters.md"
    " in the package's documentation"
)
DISK_REMEDY = "run 'sudo zfs {command}' in dom0"
DISK_REMEDY_MOVE = "move that dataset out of the pool with 'sudo zfs rename'"
ZPOOL_PROPERTY = (
    "the zpool {zpool} has {property}={value} where {wanted} must be, and could"
    " not be changed; it was exported again"
)
ZPOOL_OTHER_NAME = (
    "the zpool that was listed as {zpool} has the name {name} now and was"
    " exported again; disconnect other disks and try again"
)
ZPOOL_NAMES = (
    "the zpool with the guid {guid} has several names on the disks that are"
    " here ({names}); disconnect the disk that is not part of it"
)
ZPOOLS_OF_A_NAME = (
    "there are several zpools {zpool}, with the guids {guids}; disconnect the"
    " disks of all but one"
)
ZPOOL_HAS_POOLS = (
    "qubesd has the pools {pools} on a zpool {zpool}; run 'sudo qvm-zfs attach"
    " {pool}'"
)
RECORD_REFUSED = (
    "{dataset} has {property}={value}, which 'qvm-zfs adopt' does not write, so"
    " nothing was changed; if you did not set it, another system changed the"
    " disk: see disasters.md in the package's documentation"
)
NOT_SAVED = (
    "dom0 has no record of the adoption of {pool} (an older version of this"
    " package or another dom0 adopted it), and the record on the disk is not"
    " trusted; see moving.md in the package's documentation"
)
OTHER_ADOPTION = (
    "the record on {container} is not what dom0 recorded when the pool {pool}"
    " was adopted, or the zpool is another one, so nothing was changed; see"
    " moving.md in the package's documentation"
)
POOL_IN_USE = "{zpool} is in use: {users}; end that and try again"
NOT_ATTACHED_AGAIN = (
    "the pool {pool} is detached, but 'qvm-zfs attach' will refuse it: {why}"
)
ADOPTED_BUT = (
    "the pool {pool} was not adopted: {why}; correct that and repeat this"
    " command, or undo it with 'sudo qvm-zfs adopt --undo --apply {pool}'"
)
ZPOOL_STAYS = "{zpool} stays imported, and keys in it are forgotten: {reason}"


# --- what the other subcommands of qvm-zfs say

NO_QUBES_XML = (
    "{path}, which says which pools there are, cannot be read: {reason}; start"
    " qubesd, or restore the file"
)
NO_POOL = "there is no ZFS pool {pool}; 'qvm-zfs status' lists them"
POOL_UNKNOWN = "qubesd has no ZFS pool {pool}; 'qvm-pool list' lists its pools"
NOT_A_ZPOOL = "{name} is a dataset; name its zpool"
NOT_ENCRYPTED = "the pool {pool} is not encrypted"
NO_ENCRYPTED_POOL = "there is no encrypted pool"
DATASET_ABSENT = "{dataset} is not there; is its zpool imported?"
STAYS_UNLOCKED = (
    "{dataset} stays unlocked, because this driver does not support its name;"
    " run 'sudo zfs unload-key' with the name in quotes"
)
CHANGED_BUT = (
    "the passphrase of {pool} was changed, but the pool stays unlocked:"
    " {holders}"
)

# --- what qvm-zfs adopt says

QUBESD_RUNS = (
    "qubesd runs; shut down the qubes of the pool, run 'sudo systemctl stop"
    " qubesd' and then this command again"
)
ADOPT_DRIVER = "the pool {pool} is not on ZFS: its driver is {driver}"
ADOPT_OURS = "the pool {pool} is this driver's already"
ADOPT_VID = (
    "the volume {volume} of {qube} has the vid {vid!r}, which does not begin"
    " with {start}"
)
ADOPT_NO_FILESYSTEM = "there is no filesystem {dataset}"
ADOPT_CLAIMED = "{dataset} belongs to the pool {pool}"
ADOPT_HOME_EXISTS = (
    "{dataset} exists, and qubes are to be put there; rename it (if it is a"
    " qube's, clone that under another name)"
)
ADOPT_NO_DATASET = "there is no dataset {dataset}"
ADOPT_BOTH = "{old} and {new} both exist; rename one of them away"
ADOPT_NOT_A_QUBE = "{dataset} is a {type}, not a qube's"
ADOPT_NO_VOLUME = "{dataset} is no volume"
ADOPT_UNSAFE = (
    "{dataset} has {property}={value}, so that dom0 would read what a qube"
    " wrote; run 'sudo zfs inherit {property} {dataset}'"
)
ADOPT_OUR_NAME = (
    "qubesd does not know {dataset}, and its name is such as this driver gives;"
    " rename it"
)
ADOPT_NEARLY_EMPTY = (
    "qubesd does not know {dataset}, and hardly anything is in it; destroy it,"
    " or keep it by 'sudo zfs snapshot {dataset}@keep'"
)
ADOPT_OUR_SNAPSHOT = (
    "{snapshot} has such a name as this driver gives; rename it"
)
ADOPT_HAS_SNAPSHOTS = (
    "{dataset} has snapshots, though qubesd says that its content is not kept;"
    " destroy these if that is so"
)
ADOPT_BAD_NAME = "{name!r} is no name to work with"
ADOPT_IN_USE = "{dataset} is in use by {holders}; end that first"
NOT_ADOPTED = "the pool {pool} was not adopted"
UNDO_MADE_SINCE = (
    "{dataset} was made since the pool was adopted; remove the qube, or rename"
    " the dataset away"
)
UNDO_STARTED = "{qube} has been started since: {volume}"
UNDO_CHANGED = "{volume} of {qube} {change} since"
UNDO_OLD_EXISTS = "{dataset} exists again; rename it away"
RECORD_POOL_NAME = (
    "the pool's name {pool!r} has more than letters, digits, - _ and ., so that"
    " nothing can be recorded under it; adopting is not possible"
)
RECORD_NOT_WRITTEN = "{path}, which undoing needs, cannot be written: {reason}"
RECORD_NOT_OURS = (
    "{path} is not what 'qvm-zfs adopt' wrote there; undo by hand with the copy"
    " of qubes.xml from before, see moving.md in the package's documentation"
)
FILE_NOT_READ = "{path} cannot be read: {reason}"
XML_NO_POOL = "{path} has no pool {pool}"
XML_NOT_BOOLEAN = (
    "{path} has {attribute}={value!r} for a volume of {qube}; it must be True"
    " or False"
)
XML_CHANGED = (
    "{path} was not written: qubesd runs again; stop it with 'sudo systemctl"
    " stop qubesd', and repeat this command"
)
XML_NOT_WRITTEN = "{path} cannot be written: {reason}"


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
