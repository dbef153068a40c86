"""Server-sent events: how answers are streamed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from starlette.responses import StreamingResponse

from cellmd.server.errors import as_api_error

DONE = "data: [DONE]\n\n"


def event(content: Mapping[str, object], name: str | None = None) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Closable(Protocol):
    def close(self) -> None: ...


def event_stream(answers: Closable, events: AsyncIterator[str]) -> StreamingResponse:
    """The events as a response. Whatever ends it, also a client that leaves, ends the answers; an error midway is told
    as an event of its own, because the status has long been sent."""

    async def guarded() -> AsyncIterator[str]:
        try:
            async for text in events:
                yield text
        except Exception as error:
            yield event(as_api_error(error).body())
        finally:
            answers.close()

    return StreamingResponse(guarded(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
