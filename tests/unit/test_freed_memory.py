# SPDX-License-Identifier: BSD-2-Clause
"""Detection of a kernel that overwrites freed memory."""

import gzip

import pytest

from qubes_storage_zfs.tools import freed_memory

ON = b"#\nCONFIG_INIT_ON_FREE_DEFAULT_ON=y\n"
OFF = b"#\n# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n"


@pytest.mark.parametrize(
    "parameters, config, expected",
    [
        ("root=/dev/x quiet", None, False),
        ("root=/dev/x quiet", OFF, False),
        ("root=/dev/x quiet", ON, True),
        ("init_on_free=1", None, True),
        ("quiet init_on_free=on", OFF, True),
        ("init-on-free=y", OFF, True),
        ("init_on_free=1 init_on_free=0", ON, False),
        ("init_on_free=0 init_on_free=1", None, True),
        ("init_on_free=off", ON, False),
        ("init_on_free", OFF, False),
        ("init_on_free=maybe", ON, True),
        ("init_on_alloc=1", OFF, False),
    ],
)
def test_init_on_free_is_detected(
    monkeypatch, tmp_path, parameters, config, expected
):
    monkeypatch.setattr(freed_memory, "WORDS", tmp_path / "cmdline")
    monkeypatch.setattr(freed_memory, "CONFIG", tmp_path / "config.gz")
    freed_memory.WORDS.write_text(parameters + "\n")
    if config is not None:
        freed_memory.CONFIG.write_bytes(gzip.compress(config))
    assert freed_memory.overwritten() is expected
