# SPDX-License-Identifier: BSD-2-Clause
"""Options of a pool, which users write as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_storage_zfs.store import options
from qubes_storage_zfs.store.options import BadOption


@pytest.mark.parametrize(
    "text, size",
    [("16k", 16384), ("4096", 4096), ("128K", 131072), ("8k", 8192)],
)
def test_a_block_size_is_parsed(text, size):
    assert options.parse_blocksize(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "2k", "3k", "256k", "1M", "16kB", "16 k", "-16k", "k", None],
)
def test_an_invalid_block_size_is_refused(text):
    with pytest.raises(BadOption, match="power of two"):
        options.parse_blocksize(text)


@pytest.mark.parametrize("value", [-1, 0, "7", "-1"])
def test_a_number_of_revisions_is_parsed(value):
    assert options.parse_revisions(value) == int(value)


@pytest.mark.parametrize("value", [-2, "x", None, "", "1.5", 10**9])
def test_an_invalid_number_of_revisions_is_refused(value):
    with pytest.raises(BadOption, match="from -1 to 10000"):
        options.parse_revisions(value)


@pytest.mark.parametrize(
    "value", ["on", "off", "lz4", "zstd", "zstd-19", "gzip-9"]
)
def test_a_compression_algorithm_is_parsed(value):
    assert options.parse_compression(value) == value


@pytest.mark.parametrize(
    "value", ["", "zstd-20", "gzip-0", "lz4 ", "LZ4", None, 5]
)
def test_an_invalid_compression_algorithm_is_refused(value):
    with pytest.raises(BadOption, match="compression must"):
        options.parse_compression(value)


@pytest.mark.parametrize("text, value", [("off", "off"), ("on-for-ever", "on")])
def test_dedup_is_parsed(text, value):
    assert options.parse_dedup(text) == value


@pytest.mark.parametrize("value", ["on", "verify", "", None, True])
def test_an_invalid_dedup_is_refused(value):
    with pytest.raises(BadOption, match="slows down the whole zpool"):
        options.parse_dedup(value)


@given(st.dictionaries(st.sampled_from(sorted(options.PARSERS)), st.text()))
def test_any_text_is_parsed_or_refused_with_a_message(texts):
    try:
        options.check(texts)
    except BadOption as exc:
        assert len(str(exc)) > 20
