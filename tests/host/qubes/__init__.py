# SPDX-License-Identifier: BSD-2-Clause
"""A small stand-in for the storage side of the Qubes OS core package.

Tests use it where the real package cannot be imported: put the directory
above this one at the end of sys.path, so that a real ``qubes`` wins.
Whatever drives a storage driver must behave as the real package does; the
rest of Qubes OS is left out.
"""

import qubes.config
import qubes.exc


# the real package has a class of this name, and drivers use its helper
class property:
    """The class with the value converters that drivers use."""

    @staticmethod
    def bool(self, prop, value):
        """Convert *value*; refuse text with an unknown spelling."""
        if not isinstance(value, str):
            return True if value else False
        text = value.lower()
        if text in {"1", "yes", "true", "on"}:
            return True
        if text in {"0", "no", "false", "off"}:
            return False
        raise qubes.exc.QubesValueError(f"not a boolean: {value!r}")


# the modules below need the names above
from qubes.app import Qubes  # noqa: E402,F401
