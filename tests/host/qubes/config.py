# SPDX-License-Identifier: BSD-2-Clause
"""Defaults that storage code reads."""

defaults = {
    "private_img_size": 2 << 30,
    "root_img_size": 10 << 30,
}
