"""Ten conversations with media, tools and thinking, for comparing prompts with the reference.

Media are arrays made here, the same on every machine: pictures uint8 (H, W, 3), sounds float32 (samples,) at 16 kHz,
films (uint8 (frames, H, W, 3), frames a second).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A conversation. `media` lists what its parts refer to, in the order of the parts: (kind, medium)."""

    name: str
    messages: list[dict[str, Any]]
    media: list[tuple[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False

    def of_kind(self, kind: str) -> list[Any]:
        return [medium for medium_kind, medium in self.media if medium_kind == kind]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sound(seed: int, seconds: float) -> np.ndarray:
    n = round(seconds * 16_000)
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, n)
    return (noise + 0.3 * np.sin(np.arange(n) * 0.05)).astype(np.float32)


def film(seed: int, frames: int, fps: float) -> tuple[np.ndarray, float]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 36, 64, 3), dtype=np.uint8), fps


WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Of the answer"},
                "days": {"type": "array", "items": {"type": "integer"}, "nullable": True},
                "near": {
                    "type": "object",
                    "description": "Where to look",
                    "properties": {"radius_km": {"type": "number"}, "strict": {"type": "boolean"}},
                    "required": ["radius_km"],
                },
            },
            "required": ["place"],
        },
    },
}
CLOCK_TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}},
        "response": {"type": "object", "description": "Hours and minutes."},
    },
}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def conversations() -> list[Case]:
    image, audio, video = ({"type": kind} for kind in ("image", "audio", "video"))
    weather_call = {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "arguments": {"place": "Zürich", "days": [1, 2], "near": {"radius_km": 2.5, "strict": True}},
                },
            }
        ],
    }
    return [
        Case("plain", [{"role": "user", "content": "  Name three rivers of Europe, please.\n"}]),
        Case(
            "system and turns",
            [
                {"role": "system", "content": "You answer in French."},
                {"role": "user", "content": "Hello! 你好 🙂\n\nHow\tare you?"},
                {"role": "assistant", "content": "Très bien, merci."},
                {"role": "user", "content": [text("And  yesterday?"), text("In detail:\n1. morning\n2. evening")]},
            ],
        ),
        Case(
            "picture before text",
            [{"role": "user", "content": [image, text("What is on the picture?")]}],
            [("image", picture(1, 480, 640))],
        ),
        Case(
            "text around pictures",
            [{"role": "user", "content": [text("Compare "), image, text(" with"), image, image, text("these.")]}],
            [("image", picture(2, 31, 400)), ("image", picture(3, 768, 768)), ("image", picture(4, 50, 20))],
        ),
        Case(
            "sound after text",
            [{"role": "user", "content": [text("Transcribe this audio:"), audio]}],
            [("audio", sound(5, 3.217))],
        ),
        Case(
            "film",
            [{"role": "user", "content": [text("Look at"), video, text("What happens?")]}],
            [("video", film(6, 100, 12.5))],
        ),
        Case(
            "everything mixed",
            [
                {"role": "developer", "content": [text("Be brief."), text("Be kind.")]},
                {"role": "user", "content": [audio, image, text("Do they match?"), audio]},
                {"role": "assistant", "content": "They do."},
                {"role": "user", "content": [video, image, text("And these?"), video]},
            ],
            [
                ("audio", sound(7, 0.05)),
                ("image", picture(8, 100, 100)),
                ("audio", sound(9, 30.0)),
                ("video", film(10, 33, 0.5)),
                ("image", picture(11, 900, 30)),
                ("video", film(12, 64, 30.0)),
            ],
        ),
        Case(
            "tools offered, thinking",
            [
                {"role": "system", "content": "Use the tools."},
                {"role": "user", "content": "Is it cold in Zürich?"},
            ],
            tools=[WEATHER_TOOL, CLOCK_TOOL],
            thinking=True,
        ),
        Case(
            "tool answered, thinking",
            [
                {"role": "user", "content": "Is it cold in Zürich?"},
                {**weather_call, "reasoning_content": "I should ask.\nThe tool knows."},
                {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": -3}'},
            ],
            tools=[WEATHER_TOOL],
            thinking=True,
        ),
        Case(
            "tool with a picture, then on",
            [
                {"role": "user", "content": "Show me Zürich."},
                weather_call,
                {"role": "tool", "tool_call_id": "call_1", "content": [text("The view:"), image]},
                {"role": "assistant", "content": "<|channel>thought\nNice.\n<channel|>Here it is: snow."},
                {"role": "user", "content": "Thanks. Why is it white?"},
            ],
            [("image", picture(13, 64, 48))],
            tools=[WEATHER_TOOL],
        ),
    ]
