"""Defaults which storage code reads."""

qubes_base_dir = "/var/lib/qubes"

defaults = {
    "private_img_size": 2 << 30,
    "root_img_size": 10 << 30,
}
