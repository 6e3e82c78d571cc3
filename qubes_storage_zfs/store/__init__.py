# SPDX-License-Identifier: BSD-2-Clause
"""What is on disk: names, state and changes; no qubes, no libzfs_core."""
