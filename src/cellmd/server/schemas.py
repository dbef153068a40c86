"""What clients send, as OpenAI's interfaces define it. The OpenAPI document is made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.functional_validators import BeforeValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, from_json

from cellmd.server.errors import ApiError


def _whole(value: Any) -> Any:
    """5.0 is an integer in JSON, as it is to its schemas; texts, true and false are none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)
Integer = Annotated[int, _WHOLE]
Count = Annotated[int, Field(ge=1), _WHOLE]
TopTokens = Annotated[int, Field(ge=0, le=20), _WHOLE]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


_NOTHING: list[Any] = [None, False, 0, "", [], {}]
"""What programs send that do not want what they name."""


class Form(BaseModel):
    """Keys that are not known are ignored, as OpenAI's servers do with theirs between versions. Not so `unsupported`
    ones (with what to do instead), without which the answer would be another one than was asked for."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)
    unsupported: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, instead in cls.unsupported.items():
            schema["properties"][name] = {"enum": _NOTHING, "description": f"not supported: {instead}"}
        return schema


class TextPart(Form):
    type: Literal["text"]
    text: str


class RefusalPart(Form):
    type: Literal["refusal"]
    refusal: str


class Link(Form):
    """Where a medium is, as an object; the URL alone is taken as well."""

    @model_validator(mode="before")
    @classmethod
    def _of_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(super().__get_pydantic_json_schema__(core_schema, handler))
        return {"anyOf": [schema, {"type": "string"}]}


class ImageUrl(Link):
    url: str = Field(description="a data URL (data:image/png;base64,...); http(s) where the server allows it")
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Form):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Form):
    data: str = Field(description="base64")
    format: str = "wav"


class AudioPart(Form):
    type: Literal["input_audio"]
    input_audio: InputAudio


class VideoUrl(Link):
    url: str = Field(description="a data URL (data:video/mp4;base64,...); http(s) where the server allows it")


class VideoPart(Form):
    type: Literal["video_url"]
    video_url: VideoUrl


class AudioUrl(Link):
    url: str = Field(description="a data URL (data:audio/wav;base64,...); http(s) where the server allows it")


class AudioUrlPart(Form):
    """Not OpenAI's: a sound as a URL."""

    type: Literal["audio_url"]
    audio_url: AudioUrl


Part = Annotated[
    TextPart | ImagePart | AudioPart | AudioUrlPart | VideoPart | RefusalPart,
    Field(discriminator="type"),
]


class FunctionCall(Form):
    name: str
    arguments: str | dict[str, Any] = Field("{}", description="JSON as text; an object is taken as well")


class AssistantCall(Form):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Form):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    tool_calls: list[AssistantCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class Function(Form):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="refuse the request if the parameters cannot be held to")


class Tool(Form):
    type: Literal["function"]
    function: Function


class FunctionName(Form):
    name: str


class NamedTool(Form):
    type: Literal["function"]
    function: FunctionName


class SomeTools(Form):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=128)


class AllowedTools(Form):
    """Of the tools only some."""

    type: Literal["allowed_tools"]
    allowed_tools: SomeTools


class JsonSchema(Form):
    name: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextFormat(Form):
    type: Literal["text"]


class JsonObjectFormat(Form):
    type: Literal["json_object"]


class JsonSchemaFormat(Form):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Form):
    """Not OpenAI's: the whole answer matches a regular expression."""

    type: Literal["regex"]
    regex: str


class ChoiceFormat(Form):
    """Not OpenAI's: the answer is one of some texts."""

    type: Literal["choice"]
    choices: list[str] = Field(min_length=1, max_length=1024)


class GrammarFormat(Form):
    """Not OpenAI's: the answer follows a Lark grammar."""

    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | ChoiceFormat | GrammarFormat,
    Field(discriminator="type"),
]


class StreamOptions(Form):
    include_usage: bool = False


class Sampled(Form):
    """What all interfaces that make text have in common. Beyond OpenAI's: top_k, min_p, repetition_penalty."""

    model: str | None = Field(None, description="not looked at: the server has one")
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Annotated[int, Field(ge=-1), _WHOLE] | None = Field(None, description="0 and -1: among all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: Integer | None = None
    stream: bool | None = None
    user: str | None = Field(None, description="who asks: waiting requests take turns by it, too")
    safety_identifier: str | None = Field(None, description="in the place of user")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=1024, description="by token id")

    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "top_k", "min_p")
        penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        bias = None if self.logit_bias is None else {int(token): bias for token, bias in self.logit_bias.items()}
        values = {name: getattr(self, name) for name in (*names, *penalties)}
        return {**values, "top_k": 0 if self.top_k == -1 else self.top_k, "logit_bias": bias}


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


_FORM = "response_format says what form the answer has to have"


class ChatRequest(Sampled):
    unsupported = {
        "functions": "`tools` are their successor",
        "function_call": "`tool_choice` is its successor",
        "audio": "answers are text",
        "web_search_options": "the server looks nothing up",
        **dict.fromkeys(
            ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), _FORM
        ),
        **dict.fromkeys(("grammar", "json_schema"), _FORM),
    }
    messages: list[Message] = Field(min_length=1, max_length=4096)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call an answer")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: TopTokens | None = None
    stop: str | list[str] | None = None
    n: Count | None = None
    max_completion_tokens: Count | None = Field(None, description="at most; the server and the context may give less")
    max_tokens: Count | None = Field(None, description="the older name of max_completion_tokens")
    modalities: list[Literal["text"]] | None = None
    stream_options: StreamOptions | None = None
    reasoning_effort: Effort | None = Field(None, description="none and minimal: no reasoning; others a budget")
    reasoning_budget: Annotated[int, Field(ge=0), _WHOLE] | None = Field(
        None, description="not OpenAI's: most tokens of reasoning; 0: none"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="not OpenAI's: enable_thinking and whatever else the model's chat template reads"
    )
    image_tokens: Literal[70, 140, 280, 560, 1120] | None = Field(
        None, description="not OpenAI's: soft tokens a picture may take, before what its detail says"
    )


class CompletionRequest(Sampled):
    unsupported = {"suffix": "the model goes on from a text, it does not fill a gap"}
    prompt: str | list[str] | list[Integer] | list[list[Integer]] = Field(
        description="the exact prompt, as text or token ids, or several; no chat template runs"
    )
    max_tokens: Count | None = Field(None, description="16 if left out")
    n: Count | None = None
    logprobs: TopTokens | None = None
    echo: bool | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None


class ResponsesFormat(Form):
    format: dict[str, Any] | None = None


class ResponsesReasoning(Form):
    effort: Effort | None = None


class ResponsesRequest(Sampled):
    unsupported = {
        "background": "the answer is made while the client waits",
        "conversation": "`previous_response_id` goes on from an earlier response",
        "prompt": "the server keeps no templates of prompts",
    }
    input: str | list[dict[str, Any]] = Field(
        description="a text, or message, function_call, function_call_output items"
    )
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call an answer")
    text: ResponsesFormat | None = None
    reasoning: ResponsesReasoning | None = None
    max_output_tokens: Count | None = None
    top_logprobs: TopTokens | None = None
    include: list[str] | None = Field(
        None, max_length=32, description="message.output_text.logprobs gives log probabilities"
    )
    previous_response_id: str | None = Field(None, description="go on from this response, while the server keeps it")
    store: bool | None = Field(None, description="false: the response is not kept")
    metadata: dict[str, str] | None = None


Request = TypeVar("Request", bound=BaseModel)


def parse(body: bytes, form: type[Request]) -> Request:
    """A request's JSON body in its form. Raises ApiError for what is no JSON, nested too deep, or of another form."""
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    return parse_object(content, form)


def parse_object(content: Any, form: type[Request]) -> Request:
    asked = content if isinstance(content, dict) else {}
    for key, instead in getattr(form, "unsupported", {}).items():
        if asked.get(key) not in _NOTHING:
            raise ApiError(400, f"{key} is not supported: {instead}", code="unsupported_parameter", param=key)
    try:
        return form.model_validate(content)
    except ValidationError as error:
        # Of the forms that a value may have, the one it comes closest to is the one that goes furthest into it.
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        places = [_place(content, each["loc"], missing=each["type"] == "missing") for each in errors]
        furthest = max(range(len(errors)), key=lambda i: len(places[i]))
        where = ".".join(places[furthest]) or "body"
        raise ApiError(400, f"{where}: {errors[furthest]['msg']}", code="invalid_value", param=where) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deep", code="invalid_json") from None


def _place(content: Any, steps: Sequence[int | str], *, missing: bool) -> list[str]:
    """Where in the content an error lies: of the validator's steps those that are keys and indices in it, and the last
    one if it is a key that is missing; the others name forms."""
    place = []
    for i, step in enumerate(steps):
        if isinstance(content, dict):
            if step in content:
                content = content[step]
            elif not missing or i < len(steps) - 1:
                continue
            place.append(str(step))
        elif isinstance(content, list) and isinstance(step, int):
            content = content[step]
            place.append(str(step))
    return place
