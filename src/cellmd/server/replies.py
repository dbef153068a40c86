"""What clients are answered, as OpenAI's interfaces define it. The OpenAPI document is made of these; they are plain
dictionaries, whose making the type checker holds to what is said here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, GetPydanticSchema
from typing_extensions import TypedDict

from cellmd.runtime.result import Timings

ErrorKind = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]
ChatFinish = Literal["stop", "length", "tool_calls"]
TimingsReply = Annotated[dict[str, Any], GetPydanticSchema(lambda _, handler: handler(Timings))]


class ErrorDetail(TypedDict):
    message: str
    type: ErrorKind
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    error: ErrorDetail


# ---- chat completions ---------------------------------------------------------------------------------------


class Token(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(Token):
    top_logprobs: list[Token]


class Logprobs(TypedDict):
    content: list[ScoredToken]
    refusal: None


class CalledFunction(TypedDict):
    name: str
    arguments: Annotated[str, Field(description="JSON")]


class Call(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: ChatFinish


class PromptTokens(TypedDict):
    cached_tokens: int


class CompletionTokens(TypedDict):
    reasoning_tokens: int


class TokenCounts(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatUsage(TokenCounts):
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


class Head(TypedDict):
    """What a completion and all chunks of a streamed one begin with."""

    id: str
    created: int
    model: str


class ChatCompletion(Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: ChatUsage
    timings: TimingsReply


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class CallPart(TypedDict):
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallPart]]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: Logprobs | None
    finish_reason: ChatFinish | None


class ChatChunk(Head):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[ChatUsage | None]
    timings: NotRequired[TimingsReply]


# ---- completions --------------------------------------------------------------------------------------------


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextChunk(Head):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: NotRequired[TokenCounts]


class TextCompletion(Head):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: TokenCounts


# ---- responses ----------------------------------------------------------------------------------------------

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ScoredToken]


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningItem(TypedDict):
    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningText]
    status: ItemStatus


class CallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = MessageItem | ReasoningItem | CallItem
OutputPart = OutputText | ReasoningText


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: PromptTokens
    output_tokens: int
    output_tokens_details: CompletionTokens
    total_tokens: int


class ResponseReply(TypedDict):
    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float | None
    top_p: float | None
    top_logprobs: int | None
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    output: list[OutputItem]
    usage: ResponseUsage | None


class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseChanged(TypedDict):
    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    sequence_number: int
    response: ResponseReply


class ItemChanged(TypedDict):
    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class Place(TypedDict):
    """Where in a response, and which event of it."""

    sequence_number: int
    item_id: str
    output_index: int


class PartChanged(Place):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputPart


class OutputTextDelta(Place):
    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[ScoredToken]


class OutputTextDone(Place):
    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[ScoredToken]


class ReasoningTextDelta(Place):
    type: Literal["response.reasoning_text.delta"]
    content_index: int
    delta: str


class ReasoningTextDone(Place):
    type: Literal["response.reasoning_text.done"]
    content_index: int
    text: str


class ArgumentsDelta(Place):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(Place):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


ResponseEvent = (
    ResponseChanged
    | ItemChanged
    | PartChanged
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ArgumentsDelta
    | ArgumentsDone
)


# ---- recordings ---------------------------------------------------------------------------------------------


class DurationUsage(TypedDict):
    type: Literal["duration"]
    seconds: float


class Transcription(TypedDict):
    text: str
    usage: DurationUsage


class TranscribedSegment(TypedDict):
    id: int
    start: float
    end: float
    text: str


class VerboseTranscription(TypedDict):
    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    segments: list[TranscribedSegment]


class TranscriptDelta(TypedDict):
    type: Literal["transcript.text.delta"]
    delta: str


class TranscriptDone(TypedDict):
    type: Literal["transcript.text.done"]
    text: str
    usage: DurationUsage


# ---- the server ---------------------------------------------------------------------------------------------


Modality = Literal["text", "image", "video", "audio"]


class ModelReply(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    input_modalities: list[Modality]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelReply]


class Health(TypedDict):
    status: Literal["ok"]
