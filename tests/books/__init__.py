"""The books' commands, run; see page.py for how they are marked."""
