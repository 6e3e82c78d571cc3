# SPDX-License-Identifier: BSD-2-Clause
"""Run the commands of the documentation; page.py describes their marks."""
