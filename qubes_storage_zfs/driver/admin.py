# SPDX-License-Identifier: BSD-2-Clause
"""Objects of core-admin, as far as this package uses them.

core-admin has no type annotations. These types name each attribute that this
package relies on, so that mypy finds a misspelled one. Volumes and pools may be
those of any driver.
"""

import asyncio
import uuid
from collections.abc import Iterator, Mapping, MutableSet
from typing import Protocol


class Pool(Protocol):
    """A storage pool of any driver."""

    name: str


class Volume(Protocol):
    """A volume of any driver."""

    name: str
    vid: str
    pool: Pool
    rw: bool
    save_on_stop: bool


class Monitor(Protocol):
    """What qubesd has for the hypervisor, ``app.vmm``.

    :ivar offline_mode: the application is a copy of qubes.xml, loaded for a
        backup: no qube of it runs
    """

    offline_mode: bool


class Storage(Protocol):
    """The storage of a qube."""

    async def stop(self) -> None:
        """Stop all volumes of the qube."""


class Qube(Protocol):
    """A domain; not all classes of domains have all of these."""

    name: str
    klass: str
    uuid: uuid.UUID
    app: "Application"
    features: Mapping[str, str]
    tags: MutableSet[str]
    template: "Qube"
    volumes: Mapping[str, Volume]
    storage: Storage | None

    def is_running(self) -> bool:
        """Return whether its domain runs."""

    def get_power_state(self) -> str:
        """Return one of qubesd's words, such as "Halted"."""

    async def run_service(
        self,
        service: str,
        *,
        user: str | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> asyncio.subprocess.Process:
        """Start a qrexec service in it."""


class Domains(Protocol):
    """All domains, by name."""

    def __getitem__(self, name: str) -> Qube: ...

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[Qube]: ...


class Application(Protocol):
    """qubes.Qubes: what qubes.xml says."""

    domains: Domains
    pools: Mapping[str, Pool]
    vmm: Monitor
