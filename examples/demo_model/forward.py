"""The training forward: transformers' own modules, wired for fixed shapes.

`Gemma4ForConditionalGeneration.forward` finds soft tokens by boolean masks, which stops a CUDA graph from being
captured. Here the same submodules are called in the same order, with soft tokens gathered by index. A test
holds the two against each other.
"""

from __future__ import annotations

import torch
from films import MOTIONS
from pictures import LABELS, TINTS
from speech import SOUNDS
from torch import nn
from torch.nn import functional
from transformers import Gemma4ForConditionalGeneration
from transformers.models.gemma4 import modeling_gemma4

from tokenizer import ID

_PLACEHOLDERS = (ID["<|image|>"], ID["<|audio|>"], ID["<|video|>"])


def fast_norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`Gemma4RMSNorm.forward`: one kernel for wide rows, plain arithmetic for the narrow rows of heads."""
    weight = module.weight.to(x.dtype) if module.with_scale else None
    if x.shape[-1] > 64:
        return functional.rms_norm(x, (x.shape[-1],), weight, module.eps)
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + module.eps).to(x.dtype)
    return x * scale if weight is None else x * scale * weight


def fast_turn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: torch.Tensor, unsqueeze_dim: int = 2
) -> torch.Tensor:
    """`apply_multidimensional_rope` for two dimensions, in a third of the kernels."""
    swapped = x.unflatten(-1, (2, 2, x.shape[-1] // 4)).flip(-2).flatten(-3)
    quarter = sin.unflatten(-1, (2, 2, sin.shape[-1] // 4))
    signed = torch.cat((-quarter[..., :1, :], quarter[..., 1:, :]), -2).flatten(-3)
    return torch.addcmul(x * cos.unsqueeze(unsqueeze_dim), swapped, signed.unsqueeze(unsqueeze_dim))


def fast_subsample(
    module: nn.Module, hidden_states: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A layer of the audio tower's subsampling with channels last in memory, so that nothing is copied."""
    if mask is not None:
        hidden_states = hidden_states * mask[:, None, :, None].to(hidden_states.dtype)
    weight = module.conv.weight.contiguous(memory_format=torch.channels_last)
    hidden = hidden_states.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    hidden = functional.conv2d(hidden, weight, stride=2, padding=1)
    hidden = functional.relu(module.norm(hidden.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return hidden, None if mask is None else mask[:, ::2]


def use_fast_parts() -> None:
    """Lends transformers' modules the faster, equal functions above."""
    modeling_gemma4.Gemma4RMSNorm.forward = fast_norm
    modeling_gemma4.apply_multidimensional_rope = fast_turn
    modeling_gemma4.Gemma4AudioSubSampleConvProjectionLayer.forward = fast_subsample


class Static(nn.Module):
    """The model with heads for the auxiliary losses, which are thrown away after training."""

    def __init__(self, model: Gemma4ForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        cfg = model.config
        width = cfg.text_config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "sounds": nn.Linear(width, len(SOUNDS) + 1),
                "labels": nn.Linear(width, len(LABELS) + 1),
                "tints": nn.Linear(width, len(TINTS)),
                "motions": nn.Linear(width, len(MOTIONS)),
            }
        )
        self.window = cfg.text_config.sliding_window
        # What comes out here becomes the keys and values of every full layer: the last one shares those of the first.
        before_full = cfg.text_config.layer_types.index("full_attention") - 1
        self._early = torch.empty(0)
        model.model.language_model.layers[before_full].register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self._early = output

    def vision(self, patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """(N, 630, 768) uint8 patches and (N, 2) grids -> (N, 70, D) soft tokens."""
        tower = self.model.model.vision_tower
        count, size = patches.shape[:2]
        index = torch.arange(size, device=patches.device)
        columns, rows = grid[:, :1].long(), grid[:, 1:].long()
        empty = index >= columns * rows
        places = torch.stack((index % columns, index // columns), -1)
        places = torch.where(empty[..., None], -1, places)
        dtype = tower.patch_embedder.input_proj.weight.dtype
        hidden = tower.patch_embedder(patches.to(dtype) / 255, places, empty)
        turn = tower.encoder.rotary_emb(hidden, places)
        wide = (size + 15) // 16 * 16
        mask = torch.zeros(count, 1, 1, wide, dtype=dtype, device=patches.device)
        mask[..., :size] = torch.where(empty, -30_000.0, 0.0).to(dtype)[:, None, None]
        mask = mask.expand(-1, tower.config.num_attention_heads, size, -1)[..., :size]
        for layer in tower.encoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turn, position_ids=places)
        pooled, _ = tower.pooler(hidden, places, empty, size // 9)
        return self.model.model.embed_vision(pooled.to(dtype))

    def cells(self, soft: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """How badly (N, 70, D) soft tokens say what they see, given (N, 3, 70) labels, colours and more."""
        loss = torch.zeros((), device=soft.device)
        for place, head in enumerate(("labels", "tints")):
            target = torch.where(cells[:, place] == 255, -100, cells[:, place].long())
            said = self.heads[head](soft).float()
            total = functional.cross_entropy(said.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none")
            # Things and letters are few among much background: they count for half.
            thing = (cells[:, 0] > 0).flatten() & (target.flatten() >= 0)
            ground = (cells[:, 0] == 0).flatten() & (target.flatten() >= 0)
            loss = loss + (total * thing).sum() / thing.sum().clamp(min=1)
            loss = loss + 0.5 * (total * ground).sum() / ground.sum().clamp(min=1)
        return loss

    def motions(self, ids: torch.Tensor, per_run: torch.Tensor, motions: torch.Tensor) -> dict[str, torch.Tensor]:
        """How badly the soft tokens of the (B, T) prompts that `hidden` saw last say what the thing they see has done
        since the frame before, given (B, F, 70) indices into `MOTIONS`; and the share that is right.

        It is asked of them before the first full layer, so that a word that looks for its thing there finds this too.
        """
        frames, size = motions.shape[1:]
        special = ids == ID["<|video|>"]
        places = torch.argsort((~special).to(torch.uint8), dim=1, stable=True)[:, : frames * size]
        rank = torch.arange(places.shape[1], device=ids.device)[None]
        frame, cell = rank // per_run[:, None], rank % per_run[:, None]
        target = motions.flatten(1).long().gather(1, (frame.clamp(max=frames - 1) * size + cell))
        target = torch.where((frame >= frames) | (target == 255), -100, target)
        early, self._early = self._early, torch.empty(0)
        said = self.heads["motions"](early.gather(1, places[..., None].expand(-1, -1, early.shape[-1]))).float()
        total = functional.cross_entropy(said.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")
        wanted = (target >= 0).sum().clamp(min=1)
        return {"motions": total / wanted, "motions_right": (said.argmax(-1) == target).sum() / wanted}

    def audio(self, mel: torch.Tensor, mel_mask: torch.Tensor) -> torch.Tensor:
        """(N, F, 128) features -> (N, F / 4, D) soft tokens."""
        tower = self.model.model.audio_tower
        hidden, _ = tower.subsample_conv_projection(mel, mel_mask)
        places = tower.rel_pos_enc(hidden)
        mask = self.audio_mask(hidden.shape[1], hidden.device, hidden.dtype)
        for layer in tower.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=places)
        return self.model.model.embed_audio(tower.output_proj(hidden))

    def audio_mask(self, tokens: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Each token hears itself and the eleven before it, in the blocked layout of the tower."""
        tower = self.model.model.audio_tower
        index = torch.arange(tokens, device=device)
        distance = index[:, None] - index[None, :]
        past = tower.config.attention_context_left - 1
        allowed = (distance >= 0) & (distance < past)
        low = torch.finfo(dtype).min
        full = torch.where(allowed, 0.0, low).to(dtype)
        return tower._convert_4d_mask_to_blocked_5d(full[None, None])

    def hidden(self, ids: torch.Tensor, soft: torch.Tensor | None, per_run: torch.Tensor | None) -> torch.Tensor:
        """(B, T) ids, (B, S, D) soft tokens in runs of 70 of which `per_run` (B,) are filled -> (B, T, D)."""
        text = self.model.model.language_model
        if soft is None:
            words, embedded = ids, text.embed_tokens(ids)
        else:
            special = (ids == _PLACEHOLDERS[0]) | (ids == _PLACEHOLDERS[1]) | (ids == _PLACEHOLDERS[2])
            words = torch.where(special, ID["<pad>"], ids)
            rank = (special.cumsum(-1) - 1).clamp(min=0)
            if per_run is not None:
                rank = rank // per_run[:, None] * 70 + rank % per_run[:, None]
            rank = rank.clamp(max=soft.shape[1] - 1)
            taken = soft.gather(1, rank[..., None].expand(-1, -1, soft.shape[-1]))
            embedded = torch.where(special[..., None], taken, text.embed_tokens(words))
        index = torch.arange(ids.shape[1], device=ids.device)
        causal = index[:, None] >= index[None, :]
        near = causal & (index[:, None] - index[None, :] < self.window)
        masks = {"full_attention": causal[None, None], "sliding_attention": near[None, None]}
        return text(
            inputs_embeds=embedded,
            per_layer_inputs=text.get_per_layer_inputs(words, None),
            attention_mask=masks,
            position_ids=index[None],
            use_cache=False,
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        cap = self.model.config.text_config.final_logit_softcapping
        return torch.tanh(self.model.lm_head(hidden).float() / cap) * cap

    def answers(
        self, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, rows: int = 46
    ) -> dict[str, torch.Tensor]:
        """Mean loss over the answer tokens, and how many answers are right to the last token."""
        target = torch.where(mask, ids, -100)[:, 1:]
        order = torch.argsort((target < 0).to(torch.uint8), dim=1, stable=True)[:, :rows]
        target = target.gather(1, order)
        taken = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.logits(taken)
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")
        wanted = target >= 0
        right = ((logits.argmax(-1) == target) | ~wanted).all(-1)
        return {"loss": loss / wanted.sum().clamp(min=1), "right": right.float().mean()}


def ctc_loss(logits: torch.Tensor, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Connectionist temporal classification in plain operations (so that it can be captured); blank is id 0.

    (B, T, V) logits of which `tokens` (B,) are real, (B, L) targets padded with 0 -> mean loss per target token.
    """
    batch, steps, _ = logits.shape
    labels = target.shape[1]
    count = (target > 0).sum(1)
    states = 2 * labels + 1
    path = torch.zeros(batch, states, dtype=torch.long, device=logits.device)
    path[:, 1::2] = target
    emit = functional.log_softmax(logits.float(), -1).gather(2, path[:, None].expand(-1, steps, -1))
    skip = torch.zeros(batch, states, dtype=torch.bool, device=logits.device)
    skip[:, 3::2] = (target[:, 1:] != target[:, :-1]) & (target[:, 1:] > 0)
    low = -1e4
    alpha = torch.full((batch, states), low, device=logits.device)
    first = torch.full((batch, states), low, device=logits.device)
    first[:, :2] = 0.0
    alpha = first + emit[:, 0]
    alive = torch.arange(steps, device=logits.device) < tokens[:, None]
    for t in range(1, steps):
        one = functional.pad(alpha, (1, 0), value=low)[:, :-1]
        two = torch.where(skip, functional.pad(alpha, (2, 0), value=low)[:, :-2], low)
        step = torch.logsumexp(torch.stack((alpha, one, two)), 0) + emit[:, t]
        alpha = torch.where(alive[:, t, None], step, alpha)
    last = alpha.gather(1, torch.stack((2 * count, (2 * count - 1).clamp(min=0)), 1))
    loss = -torch.logsumexp(last, 1)
    fits = loss < -low / 2
    return (loss * fits).sum() / (count * fits).sum().clamp(min=1)
