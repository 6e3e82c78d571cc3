# SPDX-License-Identifier: BSD-2-Clause
"""The command qvm-zfs, one subcommand per file.

qvm-zfs is a process of its own.  It calls ZFS through the same modules as the
driver, and qubesd, if it runs, through qubesadmin.  It never imports ``qubes``.
"""
