"""What fits into memory: one formula, read in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawf_repl.fits import BYTES, RATIO, SIZES, Use, fits_text, largest, needed, size_text, what_fits


@given(st.integers(0, 2**44), st.sampled_from(sorted(BYTES)), st.sampled_from(sorted(RATIO)))
def test_the_largest_size_is_the_last_that_fits(free: int, dtype: str, use: Use) -> None:
    most = largest(free, dtype, use)
    assert needed(most + 2, dtype, use) > free and (needed(most, dtype, use) <= free + 1 if most else free < needed(2, dtype, use))


@given(st.integers(0, 2**44), st.integers(0, 2**44))
def test_more_memory_never_fits_less(one: int, other: int) -> None:
    for less, more in zip(what_fits(min(one, other)), what_fits(max(one, other)), strict=True):
        assert (less.parameters, less.dtype) == (more.parameters, more.dtype)
        assert less.generate <= more.generate and less.train <= more.train <= more.generate


def test_the_rows_are_the_formula() -> None:
    fits = {(fit.parameters, fit.dtype): fit for fit in what_fits(8 * 10**9)}
    assert len(fits) == len(SIZES) * len(BYTES)
    assert fits[600_000_000, "float32"].train and fits[600_000_000, "float32"].generate  # 4.14 GB
    assert not fits[1_700_000_000, "float32"].generate and fits[1_700_000_000, "bfloat16"].train
    assert not any(fit.generate for fit in what_fits(0))


def test_messages_are_one_line() -> None:
    text = fits_text(8 * 2**30)
    assert text.startswith("in 8.0 GiB there is room") and "float32" in text and "bfloat16" in text and text.isprintable()
    assert "0 parameters" in fits_text(0)


@pytest.mark.parametrize(("parameters", "text"), [(0, "0"), (3_500_000, "3.5M"), (135_000_000, "135M"), (1_700_000_000, "1.7B"), (70 * 10**9, "70B")])
def test_sizes_are_written_as_models_are_named(parameters: int, text: str) -> None:
    assert size_text(parameters) == text
