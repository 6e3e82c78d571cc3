"""The pool drivers: what qubesd calls; the only layer that imports qubes."""
