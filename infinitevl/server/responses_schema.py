"""The body of POST /v1/responses. What is not named here is refused by its name."""

from typing import Annotated, Any, Literal

from pydantic import Field

from infinitevl.engine.logprobs import MAX_LOGPROBS
from infinitevl.server.schemas import Body, MediaIo, ProcessorKwargs, Text, VideoSampling


class InputText(Body):
    """Text of the user."""

    type: Literal["input_text"]
    text: Text
    prompt_cache_breakpoint: Any = None  # of no use here, like all that is said about a cache


class InputImage(Body):
    """A picture: a data URI, http(s):// or file://."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    prompt_cache_breakpoint: Any = None


class InputVideo(VideoSampling):
    """A video, which OpenAI's API has not: where it is, and how it is sampled."""

    type: Literal["input_video"]
    video_url: str


class OutputText(Body):
    """Text of an earlier answer, as it came."""

    type: Literal["output_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Part = Annotated[InputText | InputImage | InputVideo | OutputText, Field(discriminator="type")]


class Item(Body):
    """A turn of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1)]
    # of earlier answers, and without a meaning here
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class TextSettings(Body):
    """The form of the answer, of which there is one."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(Body):
    """How the model reasons, which it does not."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class ResponseStreamOptions(Body):
    """Of a streamed answer."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: str
    input: Text | Annotated[list[Item], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    media_io_kwargs: MediaIo | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    # taken, and without a meaning here
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    # known by name, and refused unless they ask for nothing
    access_programs: Any = None
    background: bool | None = None
    background_options: Any = None
    context_management: list[Any] | None = None
    conversation: Any = None
    image: Any = None
    max_tool_calls: int | None = None
    moderation: Any = None
    previous_response_id: str | None = None
    prompt: Any = None
    reasoning: Reasoning | None = None
    service_tier: str | None = None
    store: bool | None = None
    text: TextSettings | None = None
    tool_choice: Any = None
    tools: list[Any] | None = None
    truncation: str | None = None
