# SPDX-License-Identifier: BSD-2-Clause
"""What the verbs of a qube cost, here and in the other drivers."""
