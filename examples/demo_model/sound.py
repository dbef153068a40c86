"""Sound on the GPU: room, tone, noise, speed and gain, then the log-mel features of Gemma 4."""

from __future__ import annotations

import math

import torch
from transformers import Gemma4AudioFeatureExtractor

RATE = 16_000


class LogMel(torch.nn.Module):
    """`Gemma4AudioFeatureExtractor` for a batch of equal buffers, in float32; equal to it within rounding."""

    def __init__(self) -> None:
        super().__init__()
        extractor = Gemma4AudioFeatureExtractor()
        self.register_buffer("window", torch.as_tensor(extractor.window, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.as_tensor(extractor.mel_filters, dtype=torch.float32), persistent=False)

    def forward(self, wave: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S) samples, (B,) true lengths -> (B, F, 128) features and (B, F) mask of whole frames."""
        framed = torch.nn.functional.pad(wave, (160, 0)).unfold(-1, 321, 160)[..., :-1]
        spectrum = torch.fft.rfft(framed * self.window, n=512).abs()
        mel = torch.log(spectrum @ self.filters + 1e-3)
        mask = torch.arange(mel.shape[1], device=wave.device) * 160 + 320 < 160 + length[:, None]
        return mel * mask[..., None], mask


def soft_tokens(length: torch.Tensor) -> torch.Tensor:
    """How many soft tokens a sound of `length` samples becomes."""
    frames = (length - 161).div(160, rounding_mode="floor") + 1
    return (frames + 3).div(4, rounding_mode="floor")


def augment(
    wave: torch.Tensor, length: torch.Tensor, generator: torch.Generator, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S) in -1..1 and lengths -> the same, as if heard in other rooms, by other microphones, from other throats.

    `strength` in 0..1 is how often (and how much) it is so.
    """
    batch, size = wave.shape
    device = wave.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(batch, *shape, generator=generator, device=device) * (high - low) + low

    # Speed and with it the length of the throat.
    speed = torch.where(uniform(0, 1) < 0.75 * strength, uniform(0.86, 1.2), torch.ones(batch, device=device))
    speed = torch.maximum(speed, length / (size - 400))
    places = torch.arange(size, device=device) * speed[:, None]
    left = places.long().clamp(max=size - 2)
    part = (places - left).clamp(0, 1)
    wave = wave.gather(1, left) * (1 - part) + wave.gather(1, left + 1) * part
    length = (length / speed).floor().long().clamp(max=size)
    inside = torch.arange(size, device=device) < length[:, None]
    wave = wave * inside

    # Tone (a smooth random curve of gain over frequency) and room (a decaying random echo), in the spectrum.
    total = 2 * size
    spectrum = torch.fft.rfft(wave, n=total)
    knots = torch.randn(batch, 1, 9, generator=generator, device=device) * uniform(0, 5 * strength, 1, 1)
    curve = torch.nn.functional.interpolate(knots, spectrum.shape[1], mode="linear", align_corners=True)[:, 0]
    spectrum = spectrum * 10 ** (curve / 20)
    echo_size = RATE // 2
    time = torch.arange(echo_size, device=device) / RATE
    decay = torch.exp(-6.9 * time / uniform(0.08, 0.5, 1))
    echo = torch.randn(batch, echo_size, generator=generator, device=device) * decay
    echo = echo / echo.norm(dim=1, keepdim=True) * uniform(0.1, 0.75, 1) * (uniform(0, 1, 1) < 0.5 * strength)
    echo[:, 0] = 1.0
    wave = torch.fft.irfft(spectrum * torch.fft.rfft(echo, n=total), n=total)[:, :size] * inside

    # Loudness, and noise of a random colour at 3 to 45 dB below the voice.
    level = (wave.square().sum(1, keepdim=True) / length[:, None].clamp(min=1)).sqrt().clamp(min=1e-4)
    wave = wave / level * 10 ** (uniform(-42, -12, 1) / 20)
    level = (wave.square().sum(1, keepdim=True) / length[:, None].clamp(min=1)).sqrt().clamp(min=1e-5)
    hiss = torch.fft.rfft(torch.randn(batch, size, generator=generator, device=device))
    bins = torch.arange(1, hiss.shape[1] + 1, device=device) / 50.0
    hiss = torch.fft.irfft(hiss / bins.clamp(min=1) ** uniform(0.0, 1.1, 1), n=size)
    hiss = hiss / hiss.square().mean(1, keepdim=True).sqrt()
    wave = wave + hiss * level * 10 ** (-uniform(8, 50, 1) / 20) * (uniform(0, 1, 1) < 0.8 * strength)
    return wave.clamp(-1, 1) * inside, length


def spec_mask(mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blanks a band of frequencies and two short moments."""
    batch, frames, bands = mel.shape
    floor = math.log(1e-3)

    def blank(size: int, widest: int) -> torch.Tensor:
        start = torch.rand(batch, 1, generator=generator, device=mel.device) * size
        width = torch.rand(batch, 1, generator=generator, device=mel.device) * widest
        place = torch.arange(size, device=mel.device)
        return (place >= start) & (place < start + width)

    hidden = blank(bands, 18)[:, None, :] | blank(frames, 12)[..., None] | blank(frames, 12)[..., None]
    return torch.where(hidden & (mel != 0), floor, mel)
