# SPDX-License-Identifier: BSD-2-Clause
"""For tools that run setup.py. The metadata is in pyproject.toml."""

from setuptools import setup

setup()
