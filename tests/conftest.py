# SPDX-License-Identifier: BSD-2-Clause
"""Make the package `qubes` importable.

QUBES_CORE_ADMIN names a checkout of core-admin.  The stand-in in tests/host is
last on the path, so it never hides a real package.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

checkout = os.environ.get("QUBES_CORE_ADMIN")
if checkout:
    # the checkout has stand-ins for libvirt and other packages
    sys.path[:0] = [checkout, os.path.join(checkout, "test-packages")]
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE / "host"))
