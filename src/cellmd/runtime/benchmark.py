"""How fast a file runs here, as figures and as shares of what the machine could do at best.

Two floors matter. A decoding step reads every weight of the decoder once: its time is at least those bytes over the
read bandwidth. A prompt multiplies: its time is at least the multiply-adds it needs over the processor's int8 peak.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cellmd.backends import create
from cellmd.backends.ops import Ceilings
from cellmd.config import ModelConfig, TextConfig
from cellmd.container import Container
from cellmd.errors import ArgumentError
from cellmd.models.gemma4 import Gemma4
from cellmd.processors.audio import audio_features
from cellmd.processors.config import ProcessorConfig
from cellmd.processors.image import image_features
from cellmd.processors.prompt import Processor
from cellmd.quant import PackedTensor
from cellmd.runtime.batch import Sequence as Running
from cellmd.runtime.generate import Runner
from cellmd.runtime.kv_cache import KvCache
from cellmd.runtime.logits import Logits
from cellmd.runtime.sampler import Sampler, Sampling

_DECODER = "model.language_model."


@dataclass(frozen=True)
class Work:
    """What the decoder of a file has to do at least.

    decode_bytes: weights read in a decoding step. prompt_macs: multiply-adds with weights for each token of a prompt;
    last_macs: those for its last token on top, whose logits are wanted. Attention is left out: it depends on the
    length, and is small beside these up to some thousand tokens.
    """

    decode_bytes: int
    prompt_macs: int
    last_macs: int

    @classmethod
    def of(cls, tensors: Mapping[str, PackedTensor], config: TextConfig) -> Work:
        matrices = _read_every_step(tensors)
        last_writer = config.first_shared_layer - 1
        layers_before = tuple(f"layers.{i}." for i in range(last_writer))
        keys_and_values = tuple(f"layers.{last_writer}.self_attn.{name}_proj." for name in "kv")
        sizes = {name: int(np.prod(tensor.shape)) for name, tensor in matrices.items() if len(tensor.shape) == 2}
        prompt = sum(size for name, size in sizes.items() if name.startswith((*layers_before, *keys_and_values)))
        prompt += config.ple_dim * config.d_model * last_writer  # the part of the projection that those layers read
        return cls(
            decode_bytes=sum(tensor.n_bytes for tensor in matrices.values()),
            prompt_macs=prompt,
            last_macs=sum(sizes.values()) - prompt,
        )


def _read_every_step(tensors: Mapping[str, PackedTensor]) -> dict[str, PackedTensor]:
    """The decoder's tensors without the table that is only looked up, by their names within it."""
    return {
        name.removeprefix(_DECODER): tensor
        for name, tensor in tensors.items()
        if name.startswith(_DECODER) and "embed_tokens_per_layer" not in name
    }


@dataclass(frozen=True)
class Prefill:
    """A prompt of n tokens: median milliseconds, tokens a second, and the share of the int8 peak, in percent."""

    tokens: int
    ms: float
    tokens_per_s: float
    peak_percent: float | None


@dataclass(frozen=True)
class Decode:
    """One sequence after a prompt of `context` tokens: median milliseconds of a step, the share of the bandwidth."""

    context: int
    ms: float
    tokens_per_s: float
    bandwidth_percent: float | None


@dataclass(frozen=True)
class Streams:
    """So many sequences at once, each after a prompt of `context` tokens: median milliseconds of a step of all of them,
    tokens a second of all together."""

    streams: int
    context: int
    ms: float
    tokens_per_s: float


@dataclass(frozen=True)
class Encode:
    """A picture or sound: median milliseconds of features and encoder, and the soft tokens that come of it."""

    what: str
    features_ms: float
    encoder_ms: float
    soft_tokens: int


@dataclass(frozen=True)
class Figures:
    """Everything measured. load_ms: from the path to bound weights; first_token_ms: to the first token after the first
    prompt. ceilings: of the process's own memory; file_read_bytes_per_s: of the decoder's weights in the mapped file,
    as fast where the system maps them in large pages. peak_rss_bytes, private_bytes, device_bytes: of text alone; the
    last is None where there is no device."""

    file: str
    backend: str
    threads: int | None
    load_ms: float
    first_token_ms: float
    work: Work
    ceilings: Ceilings | None
    file_read_bytes_per_s: float | None
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]
    streams: tuple[Streams, ...]
    encode: tuple[Encode, ...]
    peak_rss_bytes: int | None
    private_bytes: int | None
    device_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def benchmark(
    path: Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    kv_cache: str | None = None,
    prompts: Sequence[int] = (512,),
    n_tokens: int = 32,
    repeat: int = 3,
    streams: Sequence[int] = (),
    image_size: tuple[int, int] | None = None,
    audio_s: float | None = None,
) -> Figures:
    """Measure a file. prompts: lengths; after each, n_tokens decoding steps. streams: how many sequences at once, after
    the first of the prompts. image_size: height, width in pixels."""
    least = ("prompt", min(prompts, default=0)), ("streams", min(streams, default=1))
    for name, value in (*least, ("tokens", n_tokens), ("repeat", repeat)):
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, found {value}")
    began = time.perf_counter()
    ops = create(backend, threads, kv_cache)
    with Container.open(path) as container:
        config = ModelConfig.from_dict(container.config)
        model = Gemma4(ops, config, container.tensors)
        load_ms = _ms_since(began)
        work = Work.of(container.tensors, config.text)
        weights = [tensor.data for tensor in _read_every_step(container.tensors).values()]
        context = max(prompts) + n_tokens + 2
        runner = Runner(model, KvCache(ops, config.text, n_slots=1, context=context, chunk=ops.prompt_rows))
        rng = np.random.default_rng(0)
        runner.prefill(Running(0, _random_tokens(runner, prompts[0], rng))).best(1)
        first_token_ms = _ms_since(began)
        _text(runner, max(prompts), n_tokens, rng)  # warms caches, and shows the memory of text alone
        peak_rss, private, on_device = _peak_rss_bytes(), _private_bytes(), ops.peak_bytes()
        # What a machine can do changes with its neighbours: each run is held against ceilings measured right before it.
        runs = [
            _Run(length, ops.ceilings(), ops.read_rate(weights), *_text(runner, length, n_tokens, rng))
            for length in prompts
            for _ in range(repeat)
        ]
        together = tuple(_streams(model, n, prompts[0], n_tokens, repeat, rng) for n in streams)
        encode = []
        if image_size is not None:
            encode.append(_image(model, _front_ends(container, config), image_size, repeat, rng))
        if audio_s is not None:
            encode.append(_audio(model, _front_ends(container, config), audio_s, repeat, rng))
        return Figures(
            file=str(path),
            backend=ops.name,
            threads=threads,
            load_ms=load_ms,
            first_token_ms=first_token_ms,
            work=work,
            ceilings=_median_ceilings(runs),
            file_read_bytes_per_s=_median_of([run.file_read_bytes_per_s for run in runs]),
            prefill=tuple(_prefill([run for run in runs if run.length == length], work) for length in prompts),
            decode=tuple(_decode([run for run in runs if run.length == length], work) for length in prompts),
            streams=together,
            encode=tuple(encode),
            peak_rss_bytes=peak_rss,
            private_bytes=private,
            device_bytes=on_device,
        )


class _Run(NamedTuple):
    """One prompt and the steps after it: the machine's ceilings right before, milliseconds, the median of a step."""

    length: int
    ceilings: Ceilings | None
    file_read_bytes_per_s: float | None
    prompt_ms: float
    step_ms: float


def _text(runner: Runner, length: int, n_tokens: int, rng: np.random.Generator) -> tuple[float, float]:
    """Milliseconds of a prompt of random tokens until the first token is chosen, and the median of the decoding steps
    after it, each until its token is."""
    answers = _Answers(runner, [Running(0, _random_tokens(runner, length, rng))])
    prompt_ms = _timed_ms(answers.read)
    return prompt_ms, statistics.median(_timed_ms(answers.step) for _ in range(n_tokens))


def _streams(
    model: Gemma4, n_streams: int, length: int, n_tokens: int, repeat: int, rng: np.random.Generator
) -> Streams:
    """Sequences with the same prompt that go on with tokens of their own."""
    ops, text = model.ops, model.config.text
    context = length + repeat * n_tokens + 2
    runner = Runner(model, KvCache(ops, text, n_slots=n_streams, context=context, chunk=ops.prompt_rows))
    prompt = _random_tokens(runner, length, rng)
    answers = _Answers(runner, [Running(slot, list(prompt)) for slot in range(n_streams)])
    answers.read()
    answers.step()
    ms = statistics.median(_timed_ms(answers.step) for _ in range(repeat * n_tokens - 1))
    return Streams(n_streams, length, ms, n_streams / ms * 1e3)


class _Answers:
    """Sequences with one prompt that go on as answers do: with tokens chosen as the model's own settings choose."""

    def __init__(self, runner: Runner, sequences: Sequence[Running]) -> None:
        self._runner = runner
        self._sequences = sequences
        self._samplers = [Sampler(Sampling(top_k=64, top_p=0.95, seed=i)) for i in range(len(sequences))]

    def read(self) -> None:
        """Run the prompt, and choose the first tokens."""
        first, *others = self._sequences
        n_prompt = len(first.token_ids)
        logits = self._runner.prefill(first)
        for sequence in others:
            self._runner.copy_slot(first.slot, sequence.slot, n_prompt)
            sequence.n_done = n_prompt
        self._choose([logits] * len(self._sequences))

    def step(self) -> None:
        foreseen = [sampler.foreseen() for sampler in self._samplers]
        self._choose(self._runner.steps(self._sequences, foreseen))

    def _choose(self, logits: Sequence[Logits]) -> None:
        for sequence, sampler, row in zip(self._sequences, self._samplers, logits, strict=True):
            sequence.token_ids.append(sampler.choose(row))


def _random_tokens(runner: Runner, n: int, rng: np.random.Generator) -> list[int]:
    tokens: list[int] = rng.integers(0, runner.model.config.text.vocab_size, n).tolist()
    return tokens


def _median_of(measured: Sequence[float | None]) -> float | None:
    known = [each for each in measured if each is not None]
    return statistics.median(known) if known else None


def _median_ceilings(runs: Sequence[_Run]) -> Ceilings | None:
    measured = [run.ceilings for run in runs if run.ceilings is not None]
    if not measured:
        return None
    return Ceilings(
        statistics.median(each.read_bytes_per_s for each in measured),
        statistics.median(each.int8_macs_per_s for each in measured),
    )


def _prefill(runs: Sequence[_Run], work: Work) -> Prefill:
    length, ms = runs[0].length, statistics.median(run.prompt_ms for run in runs)
    macs = length * work.prompt_macs + work.last_macs
    shares = [1e5 * macs / run.ceilings.int8_macs_per_s / run.prompt_ms for run in runs if run.ceilings is not None]
    return Prefill(length, ms, length / ms * 1e3, statistics.median(shares) if shares else None)


def _decode(runs: Sequence[_Run], work: Work) -> Decode:
    ms, n_bytes = statistics.median(run.step_ms for run in runs), work.decode_bytes
    shares = [1e5 * n_bytes / run.ceilings.read_bytes_per_s / run.step_ms for run in runs if run.ceilings is not None]
    return Decode(runs[0].length, ms, 1e3 / ms, statistics.median(shares) if shares else None)


def _image(
    model: Gemma4, front_ends: ProcessorConfig, size: tuple[int, int], repeat: int, rng: np.random.Generator
) -> Encode:
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    features = image_features(pixels, front_ends.image)
    return Encode(
        f"image {size[0]}x{size[1]}",
        statistics.median(_timed_ms(image_features, pixels, front_ends.image) for _ in range(repeat)),
        _median_to_host(model, lambda: model.encode_image(features), repeat),
        features.n_soft_tokens,
    )


def _audio(model: Gemma4, front_ends: ProcessorConfig, seconds: float, repeat: int, rng: np.random.Generator) -> Encode:
    n_samples = round(seconds * front_ends.audio.sample_rate_hz)
    waveform = 0.1 * rng.standard_normal(n_samples, dtype=np.float32)
    features = audio_features(waveform, front_ends.audio)
    return Encode(
        f"audio {seconds:g} s",
        statistics.median(_timed_ms(audio_features, waveform, front_ends.audio) for _ in range(repeat)),
        _median_to_host(model, lambda: model.encode_audio(features), repeat),
        features.n_soft_tokens,
    )


def _median_to_host(model: Gemma4, encode: Callable[[], Any], repeat: int) -> float:
    """Median milliseconds until the soft tokens are on the host, after one run that warms up."""
    model.ops.to_numpy(encode())
    return statistics.median(_timed_ms(lambda: model.ops.to_numpy(encode())) for _ in range(repeat))


def _front_ends(container: Container, config: ModelConfig) -> ProcessorConfig:
    assets = {name: container.asset(name) for name in container.assets}
    return Processor.from_assets(assets, config).config


def _timed_ms(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return _ms_since(began)


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000.0


def _peak_rss_bytes() -> int | None:
    """The most memory this process has had resident, mapped files included; None where the system does not tell."""
    return _status_bytes("VmHWM")


def _private_bytes() -> int | None:
    """Resident memory that is not pages of a file."""
    return _status_bytes("RssAnon")


def _status_bytes(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else int(found) * 1024
