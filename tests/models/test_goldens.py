"""Every border against what transformers gave when `record_goldens.py` was run; no torch is needed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cellmd
import model_cases
from checkpoints import DATA
from transformers_model import assert_within

FILES = sorted((DATA / "models").glob("*.npz"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_border(file: Path, tmp_path: Path) -> None:
    with np.load(file) as golden, cellmd.load(model_cases.build(tmp_path, file.stem), backend="reference") as model:
        prompt = model_cases.media_prompt(model)
        ours = model_cases.decoder_borders(model, prompt)
        ours["logits"] = ours["logits"][::5]
        ours |= {f"soft.{i}": values for i, values in enumerate(model_cases.soft_tokens(model, prompt))}
        ours["steps"] = model_cases.step_logits(model, prompt, golden["answer"].tolist())
        borders = {name for name in golden.files if not name.endswith("/error")} - {"answer"}
        assert ours.keys() == borders
        for name in borders:
            assert_within(ours[name], golden[name], golden[f"{name}/error"], name)
        answer = model.generate(prompt, temperature=0, max_tokens=len(golden["answer"]))
        assert list(answer.token_ids) == golden["answer"].tolist()


def test_there_are_goldens() -> None:
    assert [file.stem for file in FILES] == ["deep_shared", "text_only", "tiny", "wide_heads"]
