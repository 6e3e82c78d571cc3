# SPDX-License-Identifier: BSD-2-Clause
"""The pool drivers that qubesd calls: the only layer that imports qubes."""
