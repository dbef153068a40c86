"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from cellmd.errors import ArgumentError


class StopStrings:
    """Passes a text on up to the first stop string, however the text is cut into pieces.

    What could be the beginning of a stop string is held back until it is known not to be one. Of several stop strings
    the one that begins first ends the text.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if isinstance(stops, str):
            stops = (stops,)
        if any(not isinstance(stop, str) or not stop for stop in stops):
            raise ArgumentError(f"stop must be non-empty strings, found {stops!r}")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be passed on now. Once `found`, nothing more is."""
        if self.found:
            return ""
        text = self._held + text
        begins = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        # A stop string that is still incomplete may begin before one that is complete: wait for it.
        open_at = self._first_open(text)
        if begins and min(begins) <= open_at:
            self.found = True
            self._held = ""
            return text[: min(begins)]
        self._held = text[open_at:]
        return text[:open_at]

    def finish(self) -> str:
        """The text has ended: what was held back is text after all, up to a complete stop string within it."""
        text, self._held = self._held, ""
        begins = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        self.found = self.found or bool(begins)
        return text[: min(begins)] if begins else text

    def _first_open(self, text: str) -> int:
        """Where the first beginning of a stop string that reaches the end of the text stands; its end if none does."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if any(len(stop) > len(text) - start and stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
