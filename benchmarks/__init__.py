# SPDX-License-Identifier: BSD-2-Clause
"""Measure the operations of a qube, with this driver and with others."""
