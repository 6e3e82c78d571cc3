# SPDX-License-Identifier: BSD-2-Clause
"""Volumes of other drivers taken over in place, and given back."""
