# SPDX-License-Identifier: BSD-2-Clause
"""The part of libvirt that qubesd uses, without virtual machines.

A running qube is a process that keeps its disks open, as a backend does.  So a
missing disk prevents its start, and an open disk is busy.  The state of each
qube is in a file, so it outlives qubesd.  bin/virsh can end a qube while
qubesd does not run.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import types
from pathlib import Path

QUBES = Path("/run/guests")
#: seconds between two checks for qubes that have ended
PAUSE = 0.2

VIR_DOMAIN_NOSTATE, VIR_DOMAIN_RUNNING, VIR_DOMAIN_BLOCKED = 0, 1, 2
VIR_DOMAIN_PAUSED, VIR_DOMAIN_SHUTDOWN, VIR_DOMAIN_SHUTOFF = 3, 4, 5
VIR_DOMAIN_CRASHED, VIR_DOMAIN_PMSUSPENDED = 6, 7
VIR_DOMAIN_START_PAUSED = 1
VIR_DOMAIN_EVENT_ID_LIFECYCLE = 0
VIR_DOMAIN_EVENT_STARTED, VIR_DOMAIN_EVENT_SUSPENDED = 2, 3
VIR_DOMAIN_EVENT_RESUMED, VIR_DOMAIN_EVENT_STOPPED = 4, 5
VIR_ERR_INTERNAL_ERROR, VIR_ERR_INVALID_CONN, VIR_ERR_NO_DOMAIN = 1, 6, 42
VIR_ERR_OPERATION_INVALID, VIR_ERR_OPERATION_UNSUPPORTED = 55, 84
VIR_ERR_OS_TYPE, VIR_ERR_NO_NODE_DEVICE = 8, 53
VIR_NODE_SUSPEND_TARGET_MEM = 0


class libvirtError(Exception):
    def __init__(self, text, code=VIR_ERR_INTERNAL_ERROR):
        super().__init__(text)
        self.code = code

    def get_error_code(self):
        return self.code


def registerErrorHandler(_handler, _context):
    pass


def disks(xml):
    """Yield (target, source, is read-only) of each disk in a domain's XML."""
    for disk in re.findall(r"<disk .*?</disk>", xml, re.DOTALL):
        target = re.search(r'<target dev="([^"]+)"', disk)[1]
        source = re.search(r'<source dev="([^"]+)"', disk)[1]
        yield target, source, "<readonly" in disk


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class virDomain:
    def __init__(self, uuid):
        self._uuid = uuid
        self._file = QUBES / f"{uuid}.json"

    def _record(self, **changes):
        values = {"id": -1, "state": VIR_DOMAIN_SHUTOFF, "pid": 0}
        if self._file.exists():
            values = json.loads(self._file.read_text("utf-8"))
        if changes:
            values.update(changes)
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(values), "utf-8")
            new.rename(self._file)
        return types.SimpleNamespace(**values)

    def UUID(self):
        return bytes.fromhex(self._uuid.replace("-", ""))

    def UUIDString(self):
        return self._uuid

    def name(self):
        return self._record().name

    def XMLDesc(self, _flags=0):
        return self._record().xml

    def ID(self):
        return self._record().id

    def state(self, _flags=0):
        values = self._record()
        if values.state != VIR_DOMAIN_SHUTOFF and not is_alive(values.pid):
            values = self._record(state=VIR_DOMAIN_SHUTOFF, id=-1)
        return [values.state, 0]

    def isActive(self):
        return self.state()[0] != VIR_DOMAIN_SHUTOFF

    def info(self):
        return [self.state()[0], 409600, 409600, 1, 1000000]

    def memoryStats(self):
        return {"actual": 409600}

    def maxMemory(self):
        return 409600

    def createWithFlags(self, flags=0):
        if self.isActive():
            raise libvirtError("the qube runs", VIR_ERR_OPERATION_INVALID)
        descriptors = []
        try:
            for _, source, read_only in disks(self._record().xml):
                mode = os.O_RDONLY if read_only else os.O_RDWR
                descriptors.append(os.open(source, mode))
            # it ends with qubesd until its number is recorded
            process = subprocess.Popen(
                ["sh", "-c", "read go && exec sleep infinity </dev/null"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError as exc:
            raise libvirtError(f"cannot open a disk: {exc}") from exc
        finally:
            for fd in descriptors:
                os.close(fd)
        counter = QUBES / "last-id"
        number = int(counter.read_text("ascii")) if counter.exists() else 0
        counter.write_text(str(number + 1), "ascii")
        paused = flags & VIR_DOMAIN_START_PAUSED
        self._record(
            pid=process.pid,
            id=number + 1,
            state=VIR_DOMAIN_PAUSED if paused else VIR_DOMAIN_RUNNING,
        )
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()

    def resume(self):
        self._record(state=VIR_DOMAIN_RUNNING)

    def suspend(self):
        self._record(state=VIR_DOMAIN_PAUSED)

    def pMSuspendForDuration(self, *_args):
        raise libvirtError("not supported here", VIR_ERR_OPERATION_UNSUPPORTED)

    def shutdown(self):
        """Ask the qube to end by itself, and return before it has."""
        if not self.isActive():
            raise libvirtError(
                "the qube does not run", VIR_ERR_OPERATION_INVALID
            )
        os.kill(self._record().pid, signal.SIGTERM)

    def destroy(self):
        if not self.isActive():
            raise libvirtError(
                "the qube does not run", VIR_ERR_OPERATION_INVALID
            )
        pid = self._record().pid
        os.kill(pid, signal.SIGKILL)
        while is_alive(pid):
            time.sleep(0.01)
        self.state()

    def undefine(self):
        self._file.unlink(missing_ok=True)

    def attachDevice(self, _xml):
        pass

    def detachDevice(self, _xml):
        pass


class Dom0(virDomain):
    def __init__(self):
        super().__init__("00000000-0000-0000-0000-000000000000")

    def name(self):
        return "Domain-0"

    def XMLDesc(self, _flags=0):
        return (
            "<domain><currentMemory unit='KiB'>2097152</currentMemory></domain>"
        )

    def ID(self):
        return 0

    def state(self, _flags=0):
        return [VIR_DOMAIN_RUNNING, 0]


class virConnect:
    def __init__(self, uri):
        self._uri = uri
        self._handlers = []
        self._seen = {}
        QUBES.mkdir(exist_ok=True)

    def getURI(self):
        return self._uri

    def getType(self):
        return "Fake"

    def isAlive(self):
        return True

    def getInfo(self):
        return ["x86_64", 8192, 2, 2000, 1, 1, 2, 1]

    def getCapabilities(self):
        return "<capabilities/>"

    def getVersion(self):
        return 4019000

    def listAllDomains(self, _flags=0):
        return [virDomain(file.stem) for file in QUBES.glob("*.json")]

    def listAllDevices(self, _flags=0):
        return []

    def _find(self, matches):
        for domain in self.listAllDomains():
            if matches(domain):
                return domain
        raise libvirtError("no such domain", VIR_ERR_NO_DOMAIN)

    def lookupByUUID(self, raw):
        return self._find(lambda domain: domain.UUID() == raw)

    def lookupByID(self, number):
        return (
            self._find(lambda domain: domain.ID() == number)
            if number
            else Dom0()
        )

    def lookupByName(self, name):
        return self._find(lambda domain: domain.name() == name)

    def defineXML(self, xml):
        domain = virDomain(re.search(r"<uuid>([^<]+)</uuid>", xml)[1])
        domain._record(name=re.search(r"<name>([^<]+)</name>", xml)[1], xml=xml)
        return domain

    def domainEventRegisterAny(self, _domain, _event, handler, opaque):
        if not self._handlers:
            asyncio.get_event_loop().call_later(PAUSE, self._poll)
        self._handlers.append((handler, opaque))
        return len(self._handlers)

    def domainEventDeregisterAny(self, number):
        self._handlers[number - 1] = None

    def _poll(self):
        for domain in self.listAllDomains():
            state = domain.state()[0]
            before = self._seen.get(domain.UUID(), state)
            self._seen[domain.UUID()] = state
            event = {
                (False, VIR_DOMAIN_SHUTOFF): VIR_DOMAIN_EVENT_STOPPED,
                (False, VIR_DOMAIN_PAUSED): VIR_DOMAIN_EVENT_SUSPENDED,
            }.get((state == before, state))
            if before == VIR_DOMAIN_PAUSED and state == VIR_DOMAIN_RUNNING:
                event = VIR_DOMAIN_EVENT_RESUMED
            for handler, opaque in (
                filter(None, self._handlers) if event else ()
            ):
                handler(self, domain, event, 0, opaque)
        asyncio.get_event_loop().call_later(PAUSE, self._poll)

    def close(self):
        pass


def open(uri=None):
    return virConnect(uri or "fake:///")


openReadOnly = open
