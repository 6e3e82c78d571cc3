# SPDX-License-Identifier: BSD-2-Clause
"""Types of the core-admin objects that this package uses.

core-admin has no type annotations.  These types name each attribute that this
package relies on, so that mypy reports a misspelled one.  Volumes and pools may
belong to any driver.
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
    """The connection of qubesd to the hypervisor, ``app.vmm``.

    :ivar offline_mode: True in a second copy of the qubes, which qubesd loads
        from qubes.xml for a backup; none of those qubes runs
    """

    offline_mode: bool


class Storage(Protocol):
    """The storage of a qube."""

    async def stop(self) -> None:
        """Stop all volumes of the qube."""


class Qube(Protocol):
    """A domain of any class; some classes lack some of these attributes."""

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
        """Return whether the domain runs."""

    def get_power_state(self) -> str:
        """Return the name of the power state in qubesd, such as "Halted"."""

    async def run_service(
        self,
        service: str,
        *,
        user: str | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> asyncio.subprocess.Process:
        """Start a qrexec service in the qube.

        :param service: name of the service, with its argument
        :param user: user that runs the service; None: the qube's default
        :param stdin: file descriptor, or a constant of subprocess
        :param stdout: file descriptor, or a constant of subprocess
        :param stderr: file descriptor, or a constant of subprocess
        """


class Domains(Protocol):
    """All domains, by name."""

    def __getitem__(self, name: str) -> Qube:
        """Return the domain of that name."""

    def __contains__(self, name: object) -> bool:
        """Return whether there is a domain of that name."""

    def __iter__(self) -> Iterator[Qube]:
        """Iterate over the domains, not over their names."""


class Application(Protocol):
    """The application object (``qubes.Qubes``): the content of qubes.xml."""

    domains: Domains
    pools: Mapping[str, Pool]
    vmm: Monitor
