# SPDX-License-Identifier: BSD-2-Clause
"""A demonstration of qubes on ZFS in a virtual machine."""
