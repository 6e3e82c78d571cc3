# SPDX-License-Identifier: BSD-2-Clause
"""Where `qubes` comes from: a core-admin checkout if one is given, else our
stand-in, which is last on the path and so never hides a real one."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

checkout = os.environ.get("QUBES_CORE_ADMIN")
if checkout:
    # its own stand-ins for libvirt and the like come after it
    sys.path[:0] = [checkout, os.path.join(checkout, "test-packages")]
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE / "host"))
