# SPDX-License-Identifier: BSD-2-Clause
"""Deliberate faults in the driver; a test must notice each of them.

Run ``python3 -m tests.teeth`` in the guest.
"""
