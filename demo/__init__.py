# SPDX-License-Identifier: BSD-2-Clause
"""The story of a qube on ZFS, told in a virtual machine."""
