# SPDX-License-Identifier: BSD-2-Clause
"""The pool drivers: what qubesd calls; the only layer that imports qubes."""
