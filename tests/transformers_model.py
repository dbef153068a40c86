"""The reference implementation on the weights of a .cellmd file, in float32 and in float64.

    pair = ReferencePair(container, folder)
    logits32, logits64 = pair(lambda model: model(input_ids=ids).logits)

Weights are decoded from the file, whatever their coding, so that both sides multiply with the same numbers. In float64
the reference's own casts to float32 are lifted: it is then the exact answer, and its float32 run says what error
float32 costs. That error is the yardstick: `assert_as_good` lets a result err twice as much, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cellmd.container import Container
from cellmd.processors.features import AudioFeatures, ImageFeatures, Prompt
from cellmd.quant.decode import decode
from checkpoints import write_json, write_safetensors

EPS = float(np.finfo(np.float32).eps)


class ReferencePair:
    def __init__(self, container: Container, folder: Path) -> None:
        """folder: where to write the decoded checkpoint."""
        import transformers

        folder.mkdir(parents=True, exist_ok=True)
        text_only = container.config["architectures"] == ["Gemma4ForCausalLM"]
        tensors = {name: decode(container.tensors[name]) for name in container.tensors}
        if text_only:
            tensors = {name.replace("model.language_model.", "model."): values for name, values in tensors.items()}
        write_safetensors(folder / "model.safetensors", tensors, "float32")
        write_json(folder / "config.json", {**container.config, "dtype": "float32"})
        kind = transformers.Gemma4ForCausalLM if text_only else transformers.Gemma4ForConditionalGeneration
        self.float32, self.float64 = (
            kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
            for dtype in ("float32", "float64")
        )

    def __call__(self, run: Callable[[Any], Any]) -> tuple[Any, Any]:
        """What `run` makes of either model, tensors in it as NumPy arrays."""
        import torch

        with torch.no_grad():
            narrow = run(self.float32)
            with _casts_lifted():
                wide = run(self.float64)
        return _to_numpy(narrow), _to_numpy(wide)


@contextmanager
def _casts_lifted() -> Iterator[None]:
    import torch

    softmax = torch.nn.functional.softmax

    def wide_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
        return softmax(x, dim=dim)

    with (
        mock.patch.object(torch.Tensor, "float", lambda x: x.double()),
        mock.patch.object(torch.nn.functional, "softmax", wide_softmax),
    ):
        yield


def _to_numpy(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: _to_numpy(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [_to_numpy(value) for value in result]
    return result.numpy() if hasattr(result, "numpy") else result


def row_errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Root of each row's mean squared error, relative to the root of its mean square."""
    exact = exact.reshape(-1, exact.shape[-1]).astype(np.float64)
    difference = got.reshape(exact.shape) - exact
    return np.sqrt(np.mean(difference**2, axis=1) / np.maximum(np.mean(exact**2, axis=1), 1e-30))


def assert_as_good(got: np.ndarray, float32: np.ndarray, float64: np.ndarray, what: str = "") -> None:
    """got errs at most twice as much as the reference does in float32; see `assert_within`."""
    assert_within(got, float64, row_errors(float32, float64), what)


def assert_within(got: np.ndarray, exact: np.ndarray, theirs: np.ndarray, what: str = "") -> None:
    """got errs at most twice as much as the reference in float32, whose row errors are `theirs`, or a few roundings.

    Judged by the median over rows: random models have rows in which any two orders of summation end far apart, as two
    draws from one distribution. A row 32 times as far off as the reference's is no such draw but a mistake.
    """
    assert got.dtype == np.float32, what
    assert got.shape == exact.shape, what
    ours = row_errors(got, exact)
    assert np.median(ours) <= 2 * np.median(theirs) + 2 * EPS, (
        f"{what}: error {np.median(ours):.1e}, the reference's own in float32 is {np.median(theirs):.1e}"
    )
    worst = np.max(ours / (np.maximum(theirs, np.median(theirs)) + 2 * EPS))
    assert worst <= 32, f"{what}: row {np.argmax(ours)} is {worst:.0f} times as far off as the reference in float32"


def inputs(model: Any, prompt: Prompt) -> dict[str, Any]:
    """A prompt as arguments of the reference's forward pass: media padded to the largest of their kind."""
    import torch

    dtype = model.dtype
    arguments: dict[str, Any] = {"input_ids": torch.tensor([prompt.token_ids])}
    for kind, values, positions in (
        ("image", "pixel_values", "image_position_ids"),
        ("video", "pixel_values_videos", "video_position_ids"),
    ):
        grids = [span.features for span in prompt.media if span.kind == kind]
        if grids:
            arguments[values], arguments[positions] = _pictures(grids, dtype)
    n_frames = sum(span.kind == "video" for span in prompt.media)
    if n_frames:
        arguments["num_frames_per_video"] = torch.tensor([n_frames])
    sounds = [span.features.log_mel for span in prompt.media if isinstance(span.features, AudioFeatures)]
    if sounds:
        longest = max(map(len, sounds))
        padded = [np.pad(log_mel, ((0, longest - len(log_mel)), (0, 0))) for log_mel in sounds]
        arguments["input_features"] = torch.tensor(np.stack(padded)).to(dtype)
        mask = [[frame < len(log_mel) for frame in range(longest)] for log_mel in sounds]
        arguments["input_features_mask"] = torch.tensor(mask)
    return arguments


def _pictures(grids: list[ImageFeatures], dtype: Any) -> tuple[Any, Any]:
    import torch

    most = max(len(grid.patches) for grid in grids)
    patches = np.zeros((len(grids), most, grids[0].patches.shape[1]), np.float32)
    positions = np.full((len(grids), most, 2), -1)
    for i, grid in enumerate(grids):
        n = len(grid.patches)
        patches[i, :n] = grid.patches
        positions[i, :n] = [(place % grid.grid_width, place // grid.grid_width) for place in range(n)]
    return torch.tensor(patches).to(dtype), torch.tensor(positions)


def decoder_borders(model: Any, prompt: Prompt) -> dict[str, Any]:
    """The borders of `model_cases.decoder_borders`, (rows, width) each."""
    text = getattr(model.model, "language_model", model.model)
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            seen[name] = output[0].clone()

        return hook

    def keep_embedded(module: Any, arguments: Any) -> None:
        seen["embedded"] = arguments[0][0].clone()

    original = text.project_per_layer_inputs

    def project(*arguments: Any) -> Any:
        result = original(*arguments)
        for i in range(result.shape[2]):
            seen[f"per_layer_input.{i}"] = result[0, :, i].clone()
        return result

    hooks = [layer.register_forward_hook(keep(f"layer.{i}")) for i, layer in enumerate(text.layers)]
    hooks.append(text.layers[0].register_forward_pre_hook(keep_embedded))
    with mock.patch.object(text, "project_per_layer_inputs", project):
        try:
            seen["logits"] = model(**inputs(model, prompt)).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
    return seen


def soft_tokens(model: Any, prompt: Prompt) -> list[Any]:
    """The soft tokens of each medium, one at a time and so without padding, in the prompt's order."""
    results = []
    for span in prompt.media:
        alone = inputs(model, Prompt((), (span,)))
        if isinstance(span.features, AudioFeatures):
            sound = model.model.get_audio_features(alone["input_features"], alone["input_features_mask"])
            results.append(sound.pooler_output[0])
        else:
            patches, positions = _pictures([span.features], model.dtype)
            results.append(model.get_image_features(patches, positions).pooler_output[0])
    return results


def greedy(model: Any, prompt: Prompt, n: int, end_ids: tuple[int, ...]) -> dict[str, Any]:
    """Greedy generation: "ids" of the answer and "logits" (n, V) of every step."""
    output = model.generate(
        **inputs(model, prompt),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=list(end_ids),
        return_dict_in_generate=True,
        output_logits=True,
    )
    import torch

    return {"ids": output.sequences[0, len(prompt) :], "logits": torch.cat(output.logits)}
