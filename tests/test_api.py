"""The Python interface, on small random models: loading, prompts, logits, answers, conversations."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cellmd
import model_cases
from cellmd.backends import create
from cellmd.container import Container
from cellmd.models.gemma4 import Gemma4
from cellmd.processors.tokenizer import LibraryTokenizer
from cellmd.quant.decode import decode
from cellmd.quant.tensor import PackedTensor
from cellmd.runtime import kv_cache
from cellmd.runtime.generate import Runner
from cellmd.runtime.kv_cache import KvCache
from cellmd.vocabulary import Vocabulary
from checkpoints import make_checkpoint
from container.files import join_v1, v1_quantised
from naive_ops import packed


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_cases.build(tmp_path_factory.mktemp("model"), "tiny", "aggressive")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[cellmd.Model]:
    with cellmd.load(path) as model:
        yield model


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seconds_of_sound(seconds: float) -> tuple[np.ndarray, int]:
    return np.random.default_rng(0).standard_normal(int(8000 * seconds)).astype(np.float32) / 8, 8000


# ---- loading --------------------------------------------------------------------------------------------


def test_a_model_tells_what_it_is(model: cellmd.Model) -> None:
    assert model.context == model.config.text.context_length == 8192
    assert model.backend in ("cpu", "reference")
    assert model.defaults.end_ids == (1, 106, 50)


def test_backend_is_chosen_by_name(path: Path) -> None:
    with cellmd.load(path, backend="reference") as model:
        assert model.backend == "reference"
    with pytest.raises(cellmd.BackendError, match=r"'abacus' is unknown; installed here: .*reference"):
        cellmd.load(path, backend="abacus")


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1.5}, {"context": 0}, {"context": 8193}])
def test_options_out_of_range_are_refused(path: Path, options: dict[str, int]) -> None:
    with pytest.raises(cellmd.ArgumentError, match=next(iter(options))):
        cellmd.load(path, **options)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(cellmd.ContainerError, match=r"none\.cellmd"):
        cellmd.load(tmp_path / "none.cellmd")


@pytest.mark.parametrize("change", ["missing", "misshapen"])
def test_tensors_must_be_those_of_the_configuration(path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    opened = Container.open

    def damaged(path: Path) -> Container:
        container = opened(path)
        tensors = dict(container.tensors)
        norm = tensors.pop("model.language_model.norm.weight")
        if change == "misshapen":
            tensors[norm.name] = tensors["model.language_model.layers.0.self_attn.q_norm.weight"]
        container.tensors = tensors
        return container

    monkeypatch.setattr(Container, "open", damaged)
    message = {"missing": r"norm\.weight' is missing", "misshapen": r"norm\.weight' has the shape \(8,\)"}
    with pytest.raises(cellmd.LayoutError, match=message[change]):
        cellmd.load(path)


def test_a_closed_model_says_so(path: Path) -> None:
    model = cellmd.load(path)
    prompt = model.prepare("hello")
    model.close()
    model.close()
    for use in (lambda: model.logits(prompt), lambda: model.generate(prompt)):
        with pytest.raises(cellmd.ArgumentError, match="was closed"):
            use()


# ---- prompts and logits ---------------------------------------------------------------------------------


def test_prepare_and_logits(model: cellmd.Model) -> None:
    prompt = model.prepare("hello world")
    logits = model.logits(prompt)
    assert logits.shape == (len(prompt), 512)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.abs(logits).max() <= 30  # the model's soft cap
    shorter = cellmd.Prompt(prompt.token_ids[:-3])
    np.testing.assert_allclose(model.logits(shorter), logits[:-3], rtol=1e-3, atol=1e-3)


def test_the_system_message_may_stand_alone(model: cellmd.Model, picture: Image.Image) -> None:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this"}]
    messages = [{"role": "system", "content": "say one"}, {"role": "user", "content": content}]
    whole = model.prepare(messages)
    assert model.prepare("what is this", images=picture, system="say one").token_ids == whole.token_ids
    assert model.prepare(messages[1:], system="say one").token_ids == whole.token_ids


def test_long_sound_is_cut_into_pieces(model: cellmd.Model) -> None:
    prompt = model.prepare("what is this", audio=[seconds_of_sound(31)])
    assert [span.kind for span in prompt.media] == ["audio", "audio"]


def test_logits_that_do_not_fit_are_refused(model: cellmd.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = cellmd.Prompt((2,) * 9000)
    with pytest.raises(cellmd.ContextLengthError, match="9000"):
        model.logits(prompt)
    monkeypatch.setattr("cellmd.api.free_memory_bytes", lambda: 1000)
    with pytest.raises(cellmd.ContextLengthError, match="logits of 5 tokens take"):
        model.logits(cellmd.Prompt((2,) * 5))


# ---- answers --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_answer(model: cellmd.Model) -> None:
    answers = [model.generate("hello world", max_tokens=12, seed=seed).token_ids for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_stream_and_generate_agree(model: cellmd.Model) -> None:
    pieces = list(model.stream("hello world", max_tokens=12, seed=3))
    result = model.generate("hello world", max_tokens=12, seed=3)
    assert "".join(piece.text for piece in pieces) == result.text
    assert sum((piece.token_ids for piece in pieces), ()) == result.token_ids
    assert pieces[-1].usage == result.usage
    assert pieces[-1].finish_reason == result.finish_reason in ("stop", "length")


def test_greedy_takes_the_likeliest(model: cellmd.Model) -> None:
    prompt = model.prepare("hello world")
    result = model.generate(prompt, temperature=0, max_tokens=4, logprobs=True)
    whole = cellmd.Prompt((*prompt.token_ids, *result.token_ids[:-1]))
    rows = model.logits(whole)[len(prompt) - 1 :]
    assert rows.argmax(axis=1).tolist() == list(result.token_ids)
    exact = rows.astype(np.float64)
    want = exact.max(axis=1) - np.log(np.exp(exact).sum(axis=1))
    np.testing.assert_allclose(result.logprobs, want, rtol=1e-3, atol=1e-3)


def test_repetition_penalty_reaches_the_model(model: cellmd.Model) -> None:
    plain, penalised = (
        model.generate("hello world", temperature=0, max_tokens=20, repetition_penalty=penalty).token_ids
        for penalty in (1.0, 50.0)
    )
    assert plain != penalised
    assert len(set(penalised)) == len(penalised)


def test_all_media_in_one_message(model: cellmd.Model, picture: Image.Image) -> None:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    film = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    result = model.generate(
        "describe the picture and the sound",
        images=[encoded.getvalue(), picture],
        audio=seconds_of_sound(0.5),
        videos=[film],
        image_tokens=70,
        video_frames=2,
        max_tokens=3,
    )
    assert result.timings.encoder_ms.keys() == result.timings.features_ms.keys() == {"image", "audio", "video"}
    assert result.usage.completion_tokens == len(result.token_ids) <= 3


def test_a_prepared_prompt_takes_no_media(model: cellmd.Model) -> None:
    prompt = model.prepare("hello")
    with pytest.raises(cellmd.ArgumentError, match="takes no images"):
        model.generate(prompt, images=["a.png"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"image_tokens": 7}, "image"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    model: cellmd.Model, options: dict[str, object], message: str
) -> None:
    with pytest.raises(cellmd.ArgumentError, match=message):
        model.stream("hello", **options)


def test_unknown_options_are_type_errors(model: cellmd.Model) -> None:
    with pytest.raises(TypeError, match="temprature"):
        model.stream("hello", temprature=1.0)


def test_prompt_and_answer_must_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cellmd.load(path, context=40) as model:
        with monkeypatch.context() as patch:
            patch.setattr(kv_cache, "free_memory_bytes", lambda: 10)
            with pytest.raises(cellmd.ContextLengthError, match="memory"):
                model.generate("hello world", max_tokens=2)
        model.generate("hello world", max_tokens=40 - len(model.prepare("hello world")))
        with pytest.raises(cellmd.ContextLengthError, match="the context has 40"):
            model.generate("hello world", max_tokens=40)


def test_one_answer_at_a_time(model: cellmd.Model) -> None:
    pieces = model.stream("hello world", seed=1)
    next(pieces)
    with pytest.raises(cellmd.ArgumentError, match="busy"):
        model.generate("hello")
    pieces.close()
    model.generate("hello", max_tokens=1)


# ---- conversations --------------------------------------------------------------------------------------


def test_a_chat_remembers_and_computes_only_what_is_new(model: cellmd.Model, picture: Image.Image) -> None:
    chat = model.chat(system="say one")
    model.generate("something else", max_tokens=1)  # leaves nothing in common but the begin token and the turn
    first = chat.generate([{"type": "image", "image": picture}, {"type": "text", "text": "what is this"}], max_tokens=6)
    assert first.usage.cached_tokens < 10
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == first.text
    second = chat.generate("and the sound", max_tokens=6, temperature=0)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second.timings.encoder_ms == {}  # the picture's soft tokens were in the cache
    fresh = model.generate(chat.messages[:-1], max_tokens=6, temperature=0)
    assert fresh.usage.cached_tokens == 0
    assert fresh.token_ids == second.token_ids
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "say one"}]


def test_a_turn_that_is_broken_off_is_remembered_as_far_as_it_went(model: cellmd.Model) -> None:
    chat = model.chat()
    pieces = chat.stream("hello world", seed=1, max_tokens=50)
    said = next(pieces).text
    pieces.close()
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[-1]["content"] == said
    assert chat.generate("and you", max_tokens=2).usage.cached_tokens > 0


def test_a_message_that_cannot_be_used_is_not_remembered(model: cellmd.Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    chat = model.chat()
    with pytest.raises(cellmd.MediaDecodeError, match=r"broken\.png"):
        chat.stream([{"type": "image", "image": str(tmp_path / "broken.png")}])
    assert chat.messages == []


# ---- other files ----------------------------------------------------------------------------------------


def test_a_file_without_generation_config_ends_at_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(name for name in Container.open(path).assets if name != "generation_config.json")
    monkeypatch.setattr(Container, "assets", names)
    with cellmd.load(path) as model:
        assert model.defaults.end_ids == (1, 106)
        assert model.defaults.sampling.temperature == 0


def test_a_tokenizer_that_is_not_compiled_is_kept_and_answers_alike(path: Path, tmp_path: Path) -> None:
    """One more option in tokenizer.json that compiling does not know, and that changes nothing here."""
    source = make_checkpoint(tmp_path / "source", shape="tiny", dtype="float32")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["rstrip"] = True
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    cellmd.convert(source, tmp_path / "kept.cellmd", recipe="float")
    with Container.open(tmp_path / "kept.cellmd") as kept, Container.open(path) as compiled:
        assert ("tokenizer.json" in kept.assets, "vocabulary.bin" in kept.assets) == (True, False)
        assert ("tokenizer.json" in compiled.assets, "vocabulary.bin" in compiled.assets) == (False, True)
    with cellmd.load(tmp_path / "kept.cellmd", backend="reference") as kept, cellmd.load(path) as compiled:
        assert isinstance(kept.processor.tokenizer, LibraryTokenizer)
        assert isinstance(compiled.processor.tokenizer, Vocabulary)
        messages = [{"role": "user", "content": "hello <|turn> world"}]
        assert kept.prepare(messages).token_ids == compiled.prepare(messages).token_ids


def test_a_file_of_version_1_runs(tmp_path: Path) -> None:
    """INT4 with one scale a row, the tokenizer beside it: the answer of its decoded weights."""
    source = model_cases.build(tmp_path, "tiny", vision_config=None, audio_config=None)
    entries: list[dict[str, object]] = []
    blobs: list[bytes] = []
    decoded: dict[str, PackedTensor] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> None:
        entries.append({"name": name, "dtype": dtype, "shape": shape, "offset_bytes": 0, "nbytes": len(content)})
        blobs.append(content)

    with Container.open(source) as container:
        for name, tensor in container.tensors.items():
            values = decode(tensor)
            if values.ndim == 2:
                content, scales, codes = v1_quantised("i4", values)
                add(name, "i4", values.shape, content)
                add(f"{name}.qscale", "f16", scales.shape, scales.tobytes())
                decoded[name] = packed((codes * scales[:, None].astype(np.float32)).astype(np.float32), name)
            else:
                add(name, "f16", values.shape, values.astype(np.float16).tobytes())
                decoded[name] = packed(values.astype(np.float16), name)
        (tmp_path / "old.tokenizer.json").write_bytes(
            Vocabulary.open(container.asset("vocabulary.bin")).tokenizer_json()
        )
        config = {"source_text_config": container.config["text_config"], "source_vision_config": None}
    document = {**config, "source_architectures": ["Gemma4ForConditionalGeneration"], "tensors": entries}
    (tmp_path / "old.cellmd").write_bytes(join_v1(document, blobs, start=1 << 16))

    prompt = model_cases.text_prompt(40)
    with cellmd.load(tmp_path / "old.cellmd", backend="reference") as model:
        logits = model.logits(prompt)
        assert model.defaults.end_ids == (1, 106)
        assert model.generate("hello", raw=True, max_tokens=3).usage.prompt_tokens == 6  # begin token, five letters
        with pytest.raises(cellmd.PromptError, match="no chat template"):
            model.prepare("hello")
    ops = create("reference")
    exact = Gemma4(ops, model.config, decoded)
    runner = Runner(exact, KvCache(ops, model.config.text, n_slots=1, context=64, chunk=64))
    np.testing.assert_array_equal(logits, runner.all_logits(runner.start(prompt, slot=0)[0]))


@pytest.mark.parametrize("n", [480, 425])
def test_going_back_twice_does_not_reach_what_rings_have_lost(model: cellmd.Model, n: int) -> None:
    """The first sequence wrote 1000 positions; what they replaced is lost, however short the next one was."""
    whole = model_cases.text_prompt(1000)
    first, second = (cellmd.Prompt((*whole.token_ids[:length], 120, 121)) for length in (505, n))
    options = {"temperature": 0.0, "max_tokens": 1, "logprobs": True}
    want = model.generate(second, **options).logprobs
    model.generate(whole, max_tokens=1)
    list(model._stream(first, dict(options), reuse=True))
    got = list(model._stream(second, dict(options), reuse=True))[-1].logprobs
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_text_only_model(tmp_path: Path) -> None:
    with cellmd.load(model_cases.build(tmp_path, "text_only")) as model:
        assert model.generate("hello world", max_tokens=3, temperature=0).usage.completion_tokens <= 3
        with pytest.raises(cellmd.PromptError, match="no audio tower"):
            model.prepare("hello", audio=seconds_of_sound(0.5))


def test_convert_hands_on_its_options(tmp_path: Path) -> None:
    from checkpoints import make_checkpoint

    source, target = make_checkpoint(tmp_path / "source", shape="text_only"), tmp_path / "model.cellmd"
    seen: list[tuple[int, int, str]] = []
    report = cellmd.convert(
        str(source),
        str(target),
        group_size=32,
        progress=lambda *args: seen.append(args),
        copy_tokenizer=True,
        threads=1,
    )
    assert seen[-1][0] == seen[-1][1] > 0
    assert (tmp_path / "model.tokenizer.json").is_file()
    assert "text" in report.table()
    with Container.open(target) as container:
        sizes = {tensor.coding.group_size for tensor in container.tensors.values() if tensor.coding.quantised}
    assert sizes == {32}
