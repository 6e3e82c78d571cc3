# SPDX-License-Identifier: BSD-2-Clause
"""Code that several directories of tests share: no tests, no fixtures."""
