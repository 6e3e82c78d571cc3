"""Volumes of other drivers taken over in place, and given back."""
