# SPDX-License-Identifier: BSD-2-Clause
"""Deliberate faults, each of which the tests must notice.

``python3 -m tests.teeth`` in the guest.
"""
