"""Checkpoints of quantisation-aware training are read as they are, and the converter says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellmd
from cellmd.config import ModelConfig
from cellmd.convert.tensor_map import expected_tensors
from cellmd.quant import Coding, decode, encode
from cellmd.quant.floats import from_stored, to_stored
from cellmd.quant.grid import grid_scales
from checkpoints import checkpoint_config, make_checkpoint, random_tensor, write_assets, write_json, write_weights

EXACT = Coding("i4", "tile16", 32, "f16")


def on_grid(rng: np.random.Generator, shape: tuple[int, int], largest: int = 8) -> np.ndarray:
    """Codes of -8 .. 7, or fewer, times a float16 scale of either sign for every 32 columns; exact in float32."""
    n_rows, n_columns = shape
    codes = rng.integers(-largest, min(largest, 7) + 1, shape)
    scales = rng.uniform(0.001, 0.1, (n_rows, -(-n_columns // 32))) * rng.choice([-1, 1], (n_rows, 1))
    return (codes * np.repeat(scales.astype(np.float16), 32, axis=1)[:, :n_columns]).astype(np.float32)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_weights_on_a_grid_come_back_as_they_are(largest: int, n_rows: int, n_columns: int, seed: int) -> None:
    weights = on_grid(np.random.default_rng(seed), (n_rows, n_columns), largest)
    np.testing.assert_array_equal(decode(encode("w", weights, EXACT)), weights)


def test_products_rounded_to_bfloat16_lose_only_that_rounding() -> None:
    weights = on_grid(np.random.default_rng(1), (64, 320))
    rounded = from_stored(to_stored(weights, "bf16"), "bf16")
    decoded = decode(encode("w", rounded, EXACT))
    # Half a unit of bfloat16, and a scale that is as far off at most.
    assert (np.abs(decoded - rounded) <= 2.0**-7 * np.abs(rounded)).all()
    assert np.sqrt(np.mean((decoded - weights) ** 2)) < np.sqrt(np.mean((rounded - weights) ** 2))


def rows_on_grid(weights: np.ndarray) -> np.ndarray:
    return grid_scales(weights, (weights.min(axis=-1), weights.max(axis=-1)))[1]


def test_other_weights_are_on_no_grid() -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((64, 10, 32)).astype(np.float32)
    assert not rows_on_grid(weights).any()
    spoiled = on_grid(rng, (64, 320)).reshape(64, 10, 32)
    spoiled[50, 3, 7] *= np.float32(1.3)
    assert np.flatnonzero(~rows_on_grid(spoiled)).tolist() == [50]


def test_codes_of_both_8_and_minus_8_are_no_grid_of_int4() -> None:
    codes = np.random.default_rng(4).integers(-7, 8, (2, 1, 32))
    codes[0, 0, :3] = 8, -8, 1
    codes[1, 0, :3] = 7, -8, 1
    assert rows_on_grid(codes.astype(np.float32) * np.float32(0.25)).tolist() == [False, True]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conversion_says_so(dtype: str, tmp_path: Path) -> None:
    config = {**checkpoint_config("text_only"), "dtype": dtype}
    rng = np.random.default_rng(3)
    tensors, matrices = {}, 0
    for spec in expected_tensors(ModelConfig.from_dict(config)).values():
        if spec.unused:
            continue
        two = len(spec.shape) == 2
        matrices += two
        tensors[spec.name] = on_grid(rng, spec.shape) if two else random_tensor(spec, rng)  # type: ignore[arg-type]
    (tmp_path / "source").mkdir()
    write_json(tmp_path / "source" / "config.json", config)
    write_weights(tmp_path / "source", tensors, dtype)
    write_assets(tmp_path / "source", config)
    report = cellmd.convert(tmp_path / "source", tmp_path / "x.cellmd", recipe="qat")
    assert len(report.on_grid) == report.as_dict()["tensors_on_grid"] == matrices
    assert f"{matrices} tensors lie on the grid" in report.table()
    if dtype == "float32":
        assert all(each.error.error_energy == 0 for each in report.tensors if each.quantised)


def test_conversion_of_any_other_checkpoint_does_not(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    for recipe in ("qat", "quality"):
        report = cellmd.convert(source, tmp_path / "x.cellmd", recipe=recipe)
        assert not report.on_grid
        assert "grid" not in report.table()
