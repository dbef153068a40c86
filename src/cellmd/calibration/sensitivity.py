"""What each part of a model costs when it alone is stored: the divergence of the whole model's answers.

The model is run as it is, over a few prompts, and its distributions are kept at some positions. Then, for one group of
tensors after another, it runs again with the stored numbers of that group in the place of its own, from the first layer
that they can change on. Groups are kinds of matrices in thirds of the decoder's depth, the embedding, the tables, and
each tower as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellmd.calibration.divergence import divergence, log_softmax
from cellmd.calibration.soft_tokens import modality, placeholders_of, with_soft_tokens
from cellmd.calibration.streams import DECODER, MixedValues, Standing, Stream, Values
from cellmd.config import ModelConfig
from cellmd.processors.features import Prompt
from cellmd.quant import PackedTensor
from cellmd.runtime.batch import Sequence as Running

Progress = Callable[[int, int, str], None]
"""Called with the groups that are done, all of them, and the name of the one in hand."""

KINDS = {
    "q": r"self_attn\.q_proj\.",
    "k": r"self_attn\.k_proj\.",
    "v": r"self_attn\.v_proj\.",
    "o": r"self_attn\.o_proj\.",
    "gate": r"mlp\.gate_proj\.",
    "up": r"mlp\.up_proj\.",
    "down": r"mlp\.down_proj\.",
    "per-layer gate": r"per_layer_input_gate\.",
    "per-layer output": r"per_layer_projection\.",
}
"""Matrices of a decoder layer, by a pattern in their names."""

_WHOLE = {
    "embedding and head": re.escape(f"{DECODER}embed_tokens."),
    "per-layer table": re.escape(f"{DECODER}embed_tokens_per_layer."),
    "per-layer projection": re.escape(f"{DECODER}per_layer_model_projection."),
    "vision": r"^model\.(vision_tower|embed_vision)\.",
    "audio": r"^model\.(audio_tower|embed_audio)\.",
}

_EMBEDDING = f"{DECODER}embed_tokens.weight"

TOWERS = ("vision", "audio")
PARTS = 3
"""Parts of the decoder's depth."""

MOST_TEXTS, TEXT_TOKENS, MOST_MEDIA = 8, 192, 3
POSITIONS = 32
"""Measured of each prompt. 8 texts of 32 positions of a vocabulary of 262,144 take 270 MB."""


@dataclass(frozen=True)
class Group:
    """Tensors that are looked at together. kind: a key of KINDS, or the group's own name. first_layer: the first whose
    outcome they change; 0 where they change what enters the decoder."""

    name: str
    kind: str
    tensors: tuple[str, ...]
    first_layer: int = 0


@dataclass(frozen=True)
class Cost:
    """divergence: mean KL in nats when the group alone is stored, None where no prompt could tell (a tower that no
    prompt has media for)."""

    group: Group
    divergence: float | None

    def as_dict(self) -> dict[str, Any]:
        kl = None if self.divergence is None else float(f"{self.divergence:.4g}")
        return {"group": self.group.name, "tensors": len(self.group.tensors), "kl": kl}


def groups_of(config: ModelConfig, names: Iterable[str]) -> list[Group]:
    """The groups of some tensors, those that are quantised as a rule; in a fixed order, none of them empty."""
    names = list(names)
    n_layers = config.text.n_layers
    groups = [
        Group(kind, kind, tuple(name for name in names if re.search(pattern, name))) for kind, pattern in _WHOLE.items()
    ]
    for kind, pattern in KINDS.items():
        for part in range(PARTS):
            first, last = part * n_layers // PARTS, (part + 1) * n_layers // PARTS - 1
            tensors = tuple(name for name in names if re.search(pattern, name) and first <= layer_of(name) <= last)
            groups.append(Group(f"{kind}, layers {first} to {last}", kind, tensors, first))
    return [group for group in groups if group.tensors]


def layer_of(name: str) -> int:
    """Index of the decoder layer that a tensor belongs to; -1 for others."""
    found = re.match(re.escape(DECODER) + r"layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def few(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Some of the prompts, of each modality, texts cut short: as many as a measurement takes."""
    texts = [replace(each, token_ids=each.token_ids[:TEXT_TOKENS]) for each in prompts if not each.media]
    chosen = _evenly(texts, MOST_TEXTS)
    for wanted in TOWERS:
        chosen += _evenly([each for each in prompts if modality(each) == wanted], MOST_MEDIA)
    return chosen


def positions_of(prompt: Prompt) -> np.ndarray:
    """Where to measure: evenly over a text, over what follows the media otherwise."""
    first = max((span.start + span.features.n_soft_tokens for span in prompt.media), default=0)
    first = min(first, len(prompt) - 1)
    return np.unique(np.linspace(first, len(prompt) - 1, POSITIONS).astype(np.int64))


class Sensitivity:
    """Measures groups on one model. importance: by matrix name, the mean square of each input column (K,) in the
    model as it is; of the decoder's matrices, and of those of towers that the prompts have media for."""

    def __init__(
        self,
        source: Values,
        stored: Values,
        config: ModelConfig,
        tensors: Mapping[str, PackedTensor],
        prompts: Sequence[Prompt],
        pool: Executor,
    ) -> None:
        """source, stored: the model's own numbers, and those that groups are measured with. tensors: by name, to bind
        a model to. prompts: all are used as they are, in `pool` side by side."""
        self._values = MixedValues(source, stored, keep=_EMBEDDING)
        self._config = config
        self._tensors = tensors
        self._prompts = prompts
        self._pool = pool
        self._stream = Stream(self._values, config.text, tensors)
        self._pieces = range(len(prompts))
        self._positions = [positions_of(prompt) for prompt in prompts]
        self._modalities = [modality(prompt) for prompt in prompts]
        self._standings: dict[int, Standing] = {}
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._run_source()

    @property
    def importance(self) -> dict[str, np.ndarray]:
        return {name: (total / self._counts[name]).astype(np.float32) for name, total in self._sums.items()}

    def measure(self, groups: Sequence[Group], progress: Progress | None = None) -> list[Cost]:
        """The cost of each group, in their order. Means are taken over positions within a modality, then over the
        modalities that the prompts have."""
        costs = []
        for done, group in enumerate(groups):
            if progress is not None:
                progress(done, len(groups), group.name)
            known = group.kind not in TOWERS or group.kind in self._modalities
            costs.append(Cost(group, self._divergence(group) if known else None))
        if progress is not None:
            progress(len(groups), len(groups), "")
        return costs

    def _run_source(self) -> None:
        """The model as it is: keeps where the parts of its depth begin, the importance of columns, the answers."""
        self._sequences = with_soft_tokens(
            self._prompts, self._config, self._values, self._tensors, seen=self._remember_inputs
        )
        self._begin(self._sequences)
        n_layers = self._config.text.n_layers
        starts = {part * n_layers // PARTS for part in range(PARTS)}
        for piece in self._pieces:
            self._remember(self._stream.own_inputs(piece).inputs)
        for index in range(n_layers):
            if index in starts and index:
                self._standings[index] = self._stream.standing()
            self._layer(index, remember=True)
        for piece in self._pieces:
            self._remember({_EMBEDDING: self._stream.head_input(piece)})
        self._answers = [log_softmax(self._logits(piece)) for piece in self._pieces]
        self._values.forget()

    def _divergence(self, group: Group) -> float:
        self._values.names = frozenset(group.tensors)
        self._values.forget()
        if group.first_layer in self._standings:
            self._begin(self._sequences)
            self._stream.stand(self._standings[group.first_layer])
        elif group.kind in TOWERS:
            self._begin(with_soft_tokens(self._prompts, self._config, self._values, self._tensors))
        else:
            self._begin(self._sequences)
        for index in range(group.first_layer, self._config.text.n_layers):
            self._layer(index, remember=False)
        found: dict[str, list[np.ndarray]] = {}
        for kind, rows in zip(self._modalities, self._pool.map(self._divergences, self._pieces), strict=True):
            found.setdefault(kind, []).append(rows)
        self._values.names = frozenset()
        self._values.forget()
        return float(np.mean([np.concatenate(rows).mean(dtype=np.float64) for rows in found.values()]))

    def _divergences(self, piece: int) -> np.ndarray:
        return divergence(self._answers[piece], log_softmax(self._logits(piece)))

    def _begin(self, sequences: Sequence[Running]) -> None:
        self._stream.begin(sequences, placeholders_of(self._config))

    def _layer(self, index: int, *, remember: bool) -> None:
        for products in self._pool.map(lambda piece: self._stream.run(index, piece, keep=True), self._pieces):
            if remember:
                self._remember(products.inputs)
        self._values.forget()

    def _logits(self, piece: int) -> np.ndarray:
        return self._stream.logits(piece, self._positions[piece])

    def _remember(self, inputs: Mapping[str, np.ndarray]) -> None:
        for name, x in inputs.items():
            self._remember_inputs(name, x)

    def _remember_inputs(self, name: str, x: np.ndarray) -> None:
        squares = np.einsum("nk,nk->k", x, x, dtype=np.float64)
        self._sums[name] = self._sums.get(name, 0) + squares
        self._counts[name] = self._counts.get(name, 0) + len(x)


def _evenly(items: list[Prompt], most: int) -> list[Prompt]:
    n = min(len(items), most)
    return [items[i * len(items) // n] for i in range(n)]
