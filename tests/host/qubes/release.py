# SPDX-License-Identifier: BSD-2-Clause
"""Which core-admin the stand-in behaves like: QUBES_STAND_IN=4.3, or main."""

import os

#: core-admin v4.3.44, as Qubes OS 4.3 has it
IS_R43 = os.environ.get("QUBES_STAND_IN") == "4.3"
