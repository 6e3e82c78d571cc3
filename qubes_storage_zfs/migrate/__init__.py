# SPDX-License-Identifier: BSD-2-Clause
"""Migrate pools of other drivers in place, and undo that."""
