# SPDX-License-Identifier: BSD-2-Clause
"""qvm-zfs, one verb a file.

A process of its own, beside qubesd: it speaks to ZFS as the driver does and
to qubesd, if that runs, by qubesadmin.  It never imports ``qubes``.
"""
