# SPDX-License-Identifier: BSD-2-Clause
"""The books' commands, run; see page.py for how they are marked."""
