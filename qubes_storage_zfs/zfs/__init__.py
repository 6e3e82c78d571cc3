# SPDX-License-Identifier: BSD-2-Clause
"""Mechanisms of OpenZFS; no module in this package imports Qubes code."""
