"""Calibrated conversion: it goes through every matrix of either family's decoder, and what comes out is better."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

import cellmd
from cellmd.calibration.material import Calibration
from cellmd.container import Container
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import plan_conversion
from cellmd.convert.recipe import find_recipe
from cellmd.convert.verify import compare_with_source
from cellmd.errors import ArgumentError
from cellmd.models.layerwise import LayerwiseDecoder
from cellmd.models.weights import Weights
from cellmd.processors.features import Prompt
from checkpoints import make_checkpoint
from gemma3_checkpoint import make_gemma3

WORDS = ("the old house stands by the river and nobody knows who built it " * 50).split()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(" ".join(rng.permutation(WORDS)))
    return folder


def make_source(kind: str, folder: Path) -> Path:
    if kind == "gemma3":
        return make_gemma3(folder)
    if kind == "few_inputs":  # the per-layer projection has fewer rows than columns, as in the demo model
        narrow = {"text_config": {"hidden_size_per_layer_input": 4}}
        return make_checkpoint(folder, dtype="float32", config_overrides=narrow)
    return make_checkpoint(folder, shape=kind, dtype="float32")


def logits_of(path: Path, ids: tuple[int, ...]) -> np.ndarray:
    with cellmd.load(path, backend="reference") as model:
        return model.logits(Prompt(ids))


@pytest.mark.parametrize("kind", ["gemma3", "tiny", "deep_shared", "few_inputs"])
def test_a_calibrated_file_computes_more_nearly_what_the_source_does(kind: str, tmp_path: Path, texts: Path) -> None:
    source = make_source(kind, tmp_path / "source")
    seen: list[tuple[int, int, str]] = []
    for name, options in (
        ("float", {"recipe": "float"}),
        ("nearest", {}),
        ("calibrated", {"calibrate": texts, "progress": lambda *step: seen.append(step)}),
    ):
        cellmd.convert(source, tmp_path / f"{name}.cellmd", **options)  # type: ignore[arg-type]
    with Container.open(tmp_path / "calibrated.cellmd") as stored, Container.open(tmp_path / "nearest.cellmd") as plain:
        assert stored.provenance["calibration"] == "texts"
        assert "calibration" not in plain.provenance
        assert all(stored.tensors[name].coding == plain.tensors[name].coding for name in plain.tensors)
        decoder = [
            name
            for name, packed in stored.tensors.items()
            if packed.coding.layout == "tile16" and ".language_model." in name
        ]
        unchanged = [name for name in decoder if np.array_equal(stored.tensors[name].data, plain.tensors[name].data)]
        assert not unchanged
        others = [name for name in stored.tensors if name not in decoder]
        assert all(np.array_equal(stored.tensors[name].data, plain.tensors[name].data) for name in others)
        with Checkpoint.open(source) as checkpoint:
            measured = compare_with_source(stored, checkpoint)
        for name in decoder:  # the error that the conversion wrote down is the error there is
            assert stored.quality["tensors"][name]["rms"] == pytest.approx(measured[name].rms, rel=1e-4)
    rounded = [step for step in seen if step[1] != seen[-1][1]]
    assert [step[0] for step in rounded] == sorted(step[0] for step in rounded)
    assert rounded[-1][0] == rounded[-1][1]

    calibration = Calibration.find(texts)
    with cellmd.load(tmp_path / "float.cellmd", backend="reference") as model:
        ids = tuple(calibration.pieces(model.processor.tokenizer, 2)[-1])
    exact, nearest, calibrated = (
        logits_of(tmp_path / f"{name}.cellmd", ids) for name in ("float", "nearest", "calibrated")
    )
    assert np.mean((calibrated - exact) ** 2) < 0.8 * np.mean((nearest - exact) ** 2)


@pytest.mark.parametrize("kind", ["gemma3", "tiny", "deep_shared"])
def test_layer_by_layer_is_the_same_forward_pass(kind: str, tmp_path: Path) -> None:
    from cellmd.backends import create
    from cellmd.models.decoder import Batch

    source = make_source(kind, tmp_path / "source")
    cellmd.convert(source, tmp_path / "x.cellmd", recipe="float")
    ids = tuple(int(i) for i in np.random.default_rng(1).integers(3, 480, 50))
    expected = logits_of(tmp_path / "x.cellmd", ids)
    ops = create("reference")
    with cellmd.load(tmp_path / "x.cellmd", backend="reference") as model, Container.open(model.path) as container:
        text = model.config.text
        decoder = LayerwiseDecoder(ops, text, Weights(ops, container.tensors, "model.language_model."))
        batch = Batch(ops.ints(ids), ops.ints(range(len(ids))), ops.ints([0] * len(ids)), len(ids), len(ids))
        embedded = decoder.embed(batch)
        x, caches = embedded.copy(), {}
        for layer in text.layers:
            if layer.owns_kv:
                caches[layer.index] = ops.new_cache(1, len(ids), layer.n_kv_heads, layer.head_dim)
            decoder.layer(layer.index, x, decoder.own_input(layer.index, embedded, batch), batch, caches)
        logits = ops.linear(
            decoder.final_norm(x), ops.matrix(container.tensors["model.language_model.embed_tokens.weight"])
        )
    if text.softcap:
        logits = ops.softcap_(logits, text.softcap)
    # The reference backend keeps bit identity to rounding only; the sums here are the same up to their order.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_text_that_comes_with_cellmd_fills_every_piece(tmp_path: Path) -> None:
    source = make_gemma3(tmp_path / "source")
    with Checkpoint.open(source) as checkpoint:
        from cellmd.processors.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(checkpoint.assets)
        pieces = Calibration.find("default").pieces(tokenizer, 2)
    assert {len(piece) for piece in pieces} == {512}
    assert all(piece[0] == 2 for piece in pieces)


def test_sounds_and_pictures_come_with_cellmd(tmp_path: Path) -> None:
    from cellmd.processors.features import AudioFeatures
    from cellmd.processors.prompt import Processor

    calibration = Calibration.find("default")
    contents = [medium.content for media in calibration.media.values() for medium in media]
    assert sum(len(content) for content in contents if isinstance(content, bytes)) < 1_000_000
    with Checkpoint.open(make_checkpoint(tmp_path / "source")) as checkpoint:
        processor = Processor.from_assets(checkpoint.assets, checkpoint.config)
        prompts = calibration.prompts(processor, checkpoint)
    kinds = [isinstance(prompt.media[0].features, AudioFeatures) for prompt in prompts if prompt.media]
    assert kinds == [True] * 10 + [False] * 8
    answers = [medium.answer.strip() for media in calibration.media.values() for medium in media if medium.answer]
    assert len(answers) == 16
    asked = [prompt for prompt in prompts if prompt.media]
    ends = [processor.tokenizer.encode(answer, special=False) for answer in answers]
    assert all(any(list(prompt.token_ids[-len(end) :]) == end for prompt in asked) for end in ends)


def test_a_text_beside_a_medium_is_its_answer(tmp_path: Path) -> None:
    for name in ("a.wav", "a.txt", "b.PNG", "b.txt", "c.txt"):
        (tmp_path / name).write_text(f"what {name} says")
    calibration = Calibration.find(tmp_path)
    assert list(calibration.texts) == ["c.txt"]
    assert [medium.answer for medium in calibration.media["sound"]] == ["what a.txt says"]
    assert [medium.answer for medium in calibration.media["picture"]] == ["what b.txt says"]


def test_what_is_no_calibration_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="neither 'default' nor a folder"):
        Calibration.find(tmp_path / "nowhere")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ArgumentError, match="cannot be read"):
        Calibration.find(tmp_path)
    (tmp_path / "latin.txt").write_text("short")
    source = make_gemma3(tmp_path / "source")
    with pytest.raises(ArgumentError, match="give it more"):
        cellmd.convert(source, tmp_path / "x.cellmd", calibrate=tmp_path)
    assert not list(tmp_path.glob("*.cellmd"))


def test_sounds_and_pictures_calibrate_the_towers_too(tmp_path: Path, texts: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (96, 144, 3), np.uint8)).save(texts / "noise.png")
    with wave.open(str(texts / "noise.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(rng.integers(-9000, 9000, 32_000, np.int16).tobytes())
    source = make_checkpoint(tmp_path / "source", dtype="float32")
    for name, options in (("float", {"recipe": "float"}), ("nearest", {}), ("calibrated", {"calibrate": texts})):
        cellmd.convert(source, tmp_path / f"{name}.cellmd", **options)  # type: ignore[arg-type]
    soft = {}
    for name in ("float", "nearest", "calibrated"):
        with cellmd.load(tmp_path / f"{name}.cellmd", backend="reference") as model:
            prompt = model.prepare("What is this?", images=[texts / "noise.png"], audio=[texts / "noise.wav"])
            soft[name] = [values.values for values in model._runner.encode(prompt.media)[0]]
    for exact, nearest, calibrated in zip(*(soft[name] for name in ("float", "nearest", "calibrated")), strict=True):
        assert np.mean((calibrated - exact) ** 2) < 0.9 * np.mean((nearest - exact) ** 2)

    (texts / "noise.wav").unlink()
    cellmd.convert(source, tmp_path / "pictures.cellmd", calibrate=texts)
    with (
        Container.open(tmp_path / "pictures.cellmd") as pictures,
        Container.open(tmp_path / "calibrated.cellmd") as both,
        Container.open(tmp_path / "nearest.cellmd") as neither,
    ):
        for name, packed in pictures.tensors.items():
            if "vision_tower" in name:
                np.testing.assert_array_equal(packed.data, both.tensors[name].data)
            if "audio" in name:  # no sound, so left as it is without calibration
                np.testing.assert_array_equal(packed.data, neither.tensors[name].data)


def test_tables_are_rounded_for_the_stored_run_as_in_the_file(tmp_path: Path) -> None:
    from cellmd.calibration.streams import SourceValues, StoredValues
    from cellmd.quant import decode_rows

    source = make_checkpoint(tmp_path / "source", shape="tiny", dtype="float32")
    cellmd.convert(source, tmp_path / "x.cellmd")
    name, ids = "model.language_model.embed_tokens_per_layer.weight", np.array([5, 3, 5, 200])
    with Checkpoint.open(source) as checkpoint, Container.open(tmp_path / "x.cellmd") as container:
        plan = plan_conversion(checkpoint, find_recipe("aggressive"), None)
        values = StoredValues(SourceValues(checkpoint), plan)
        np.testing.assert_array_equal(values.rows(name, ids), decode_rows(container.tensors[name], ids))
