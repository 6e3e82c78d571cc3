# SPDX-License-Identifier: BSD-2-Clause
"""What this package knows of OpenZFS; nothing in here knows of Qubes."""
