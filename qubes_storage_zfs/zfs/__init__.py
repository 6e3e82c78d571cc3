"""What this package knows of OpenZFS; nothing in here knows of Qubes."""
