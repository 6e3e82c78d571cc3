# SPDX-License-Identifier: BSD-2-Clause
"""Every point at which qubesd or the machine can stop, tried on real ZFS.

``python3 -m tests.crash`` in the guest; see doc/reliability.md.
"""
