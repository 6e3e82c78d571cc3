# SPDX-License-Identifier: BSD-2-Clause
"""The format on disk: names, states and changes of volumes and pools."""
