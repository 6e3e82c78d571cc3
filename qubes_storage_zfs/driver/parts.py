# SPDX-License-Identifier: BSD-2-Clause
"""The parts of a volume that its operations work on."""

from typing import NamedTuple

from .content import Content
from .lifecycle import Lifecycle
from .preparation import Preparation
from .transfer import Imports


class Parts(NamedTuple):
    """The parts of one volume that Session and Changes share.

    The volume creates it, and it lasts as long as the volume.

    :ivar content: the content on disk
    :ivar lifecycle: the phase of the volume in this process
    :ivar preparation: the preparation of the next start
    :ivar imports: the import in progress
    """

    content: Content
    lifecycle: Lifecycle
    preparation: Preparation
    imports: Imports
