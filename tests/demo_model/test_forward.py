"""The recipe's own forward and features against transformers'."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "src" / "cellmd" / "demo" / "checkpoint"
sys.path.insert(0, str(ROOT / "examples" / "demo_model"))

import torch  # noqa: E402
from films import draw_film, make_film, sampled  # noqa: E402
from forward import Static, ctc_loss  # noqa: E402
from model import new_model, parameters  # noqa: E402
from pictures import draw_scene  # noqa: E402
from prompts import Media, Prompter  # noqa: E402
from sound import LogMel, soft_tokens  # noqa: E402
from world import Question, make_scene  # noqa: E402

from data import Maker  # noqa: E402
from tokenizer import ID  # noqa: E402

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def static() -> Static:
    return Static(new_model().eval())


def test_size(static: Static) -> None:
    assert 2 * parameters(static.model) < 16_000_000
    for name, weight in static.model.named_parameters():
        if weight.ndim == 2:
            assert weight.shape[1] % 32 == 0, name
            assert weight.shape[0] % 16 == 0, name


@torch.no_grad()
@pytest.mark.parametrize("samples", [9_001, 31_999, 48_000])
def test_sound(static: Static, samples: int) -> None:
    from transformers import Gemma4AudioFeatureExtractor

    rng = torch.Generator().manual_seed(samples)
    sound = torch.randn(samples, generator=rng) * 0.1
    found = Gemma4AudioFeatureExtractor()([sound.numpy()], return_tensors="pt")
    wave = torch.nn.functional.pad(sound, (0, 81_920 - samples))[None]
    length = torch.tensor([samples])
    mel, mask = LogMel()(wave, length)
    valid = int(mask.sum())
    assert valid == int(found["input_features_mask"].sum())
    assert torch.allclose(mel[0, :valid], found["input_features"][0, :valid], atol=5e-3)
    tokens = int(soft_tokens(length))
    ids, _ = Prompter(CHECKPOINT).turns([Question("Hear:", "Yes.", ())], Media("<|audio|>", tokens), random.Random(0))
    row = torch.tensor([ids])
    wanted = static.model(
        input_ids=row, input_features=found["input_features"], input_features_mask=found["input_features_mask"]
    ).logits
    soft = static.audio(mel, mask)
    assert torch.allclose(static.logits(static.hidden(row, soft, None)), wanted, atol=2e-2)


@torch.no_grad()
def test_picture(static: Static) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    maker = Maker(CHECKPOINT, None, None)
    number = next(n for n in range(50) if make_scene(random.Random(f"image:test:{n}")).sign)
    arrays = maker.image("test", [number])
    rng = random.Random(f"image:test:{number}")
    image = draw_scene(rng, make_scene(rng), maker.studio)
    found = Gemma4ImageProcessorPil(max_soft_tokens=70)(image, return_tensors="pt")
    assert (found["pixel_values"][0] * 255 - torch.from_numpy(arrays["patches"][0, 0]).float()).abs().max() < 1e-3
    ids = torch.from_numpy(arrays["ids"][0, :1]).long()
    size = int((ids != 0).sum())
    wanted = static.model(
        input_ids=ids[:, :size],
        pixel_values=found["pixel_values"],
        image_position_ids=found["image_position_ids"],
    ).logits
    grid = torch.from_numpy(arrays["grid"]).long()
    soft = static.vision(torch.from_numpy(arrays["patches"][0]), grid)
    got = static.logits(static.hidden(ids, soft, grid.prod(-1) // 9))[:, :size]
    assert torch.allclose(got, wanted, atol=1e-3)


@torch.no_grad()
def test_film(static: Static) -> None:
    maker = Maker(CHECKPOINT, None, None)
    number = next(
        n for n in range(99) if all(a.kind.is_shape for a in make_film(random.Random(f"film:test:{n}")).actors)
    )
    rng = random.Random(f"film:test:{number}")
    film = make_film(rng)
    assert len(draw_film(rng, film, maker.studio, sampled(film.length))) == 4
    arrays = maker.film("test", [number])
    grid = torch.from_numpy(arrays["grid"]).long()
    patches = torch.from_numpy(arrays["patches"])
    ids = torch.from_numpy(arrays["ids"][:, 0]).long()
    size = int((ids != 0).sum())
    index = torch.arange(630)
    places = torch.stack((index % grid[0, 0], index // grid[0, 0]), -1)
    places[index >= grid.prod()] = -1
    wanted = static.model(
        input_ids=ids[:, :size],
        pixel_values_videos=patches[0].float() / 255,
        video_position_ids=places[None].repeat(4, 1, 1),
        num_frames_per_video=torch.tensor([4]),
    ).logits
    soft = static.vision(patches.flatten(0, 1), grid.repeat_interleave(4, 0)).view(1, 280, -1)
    got = static.logits(static.hidden(ids, soft, grid.prod(-1) // 9))[:, :size]
    assert torch.allclose(got, wanted, atol=1e-3)


@torch.no_grad()
def test_motions_are_asked_of_the_tokens_that_see_the_thing(static: Static, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that reads the right answer out of what the tokens hold is all right; one cell further on it is not."""
    from films import MOTIONS

    per_run, frames = torch.tensor([64, 66]), 4
    rng = torch.Generator().manual_seed(4)
    seen = torch.full((2, frames, 70), 255)
    early = torch.zeros(2, 330, 256)
    ids = torch.full((2, 330), 30)
    for row, count in enumerate(per_run.tolist()):
        for frame in range(frames):
            start = 5 + frame * (count + 9)
            ids[row, start : start + count] = ID["<|video|>"]
            if frame:
                seen[row, frame, :count] = torch.randint(len(MOTIONS), (count,), generator=rng)
                early[row, torch.arange(start, start + count), seen[row, frame, :count]] = 50.0
    head = torch.nn.Linear(256, len(MOTIONS))
    head.weight.copy_(torch.eye(len(MOTIONS), 256))
    head.bias.zero_()
    monkeypatch.setitem(static.heads._modules, "motions", head)
    for tokens, right in ((early, True), (early.roll(1, 1), False)):
        monkeypatch.setattr(static, "_early", tokens)
        found = static.motions(ids, per_run, seen)
        assert (found["motions_right"] == 1) == right
        assert (found["motions"] < 1e-3) == right


@torch.no_grad()
def test_fast_parts_change_nothing(static: Static, monkeypatch: pytest.MonkeyPatch) -> None:
    from forward import use_fast_parts
    from transformers.models.gemma4 import modeling_gemma4

    def outputs() -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(3)
        patches = torch.randint(0, 256, (2, 630, 768), generator=rng, dtype=torch.uint8)
        soft = static.vision(patches, torch.tensor([[24, 24], [33, 18]]))
        mel = torch.randn(2, 409, 128, generator=rng)
        mask = torch.arange(409) < torch.tensor([[300], [409]])
        ids = torch.randint(24, 1536, (2, 100), generator=rng)
        return [soft, static.audio(mel, mask)[:, :75], static.hidden(ids, None, None)]

    plain = outputs()
    for owner, name in (
        (modeling_gemma4.Gemma4RMSNorm, "forward"),
        (modeling_gemma4, "apply_multidimensional_rope"),
        (modeling_gemma4.Gemma4AudioSubSampleConvProjectionLayer, "forward"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    use_fast_parts()
    for before, after in zip(plain, outputs(), strict=True):
        assert torch.allclose(before, after, atol=2e-4)


def test_ctc() -> None:
    logits = torch.randn(3, 40, 20, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[3, 4, 4, 5, 0, 0], [7, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    tokens, count = torch.tensor([40, 30, 25]), (target > 0).sum(1)
    steps = logits.log_softmax(-1).transpose(0, 1)
    wanted = torch.nn.functional.ctc_loss(steps, target, tokens, count, reduction="sum") / count.sum()
    assert torch.allclose(ctc_loss(logits, tokens, target), wanted, rtol=1e-4)
