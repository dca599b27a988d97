"""The bodies of requests. What is not named here is refused by its name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infinitevl.engine.logprobs import MAX_LOGPROBS

Text = Annotated[str, Field(max_length=4_000_000)]


class Body(BaseModel):
    """A body that knows its fields and no others, and takes "1" or true for no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    """Plain text."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Any = None  # of no use here, like all that is said about a cache


class ImageUrl(Body):
    """Where a picture is: a data URI, http(s):// or file://."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)


class VideoSampling(Body):
    """Which frames of a video are shown, and how large."""

    fps: float | None = Field(default=None, gt=0, le=1000)
    num_frames: int | None = Field(default=None, ge=1)
    max_frames: int | None = Field(default=None, ge=1)
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)


class VideoUrl(VideoSampling):
    """Where a video is, and how it is sampled."""

    url: str


class ImagePart(Body):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: Any = None


class VideoPart(Body):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1)]
    # clients send their answers back with what these say of nothing; anything else in them is refused
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: Any = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class StreamOptions(Body):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class VideoIo(Body):
    """vLLM's media_io_kwargs.video."""

    fps: float | None = Field(default=None, gt=0, le=1000)
    num_frames: int | None = Field(default=None, ge=1)


class MediaIo(Body):
    """vLLM's media_io_kwargs."""

    video: VideoIo | None = None


class ProcessorKwargs(VideoSampling):
    """vLLM's mm_processor_kwargs: for all pictures and videos of the request."""


class SamplingFields(Body):
    """How an answer is generated, in the names of OpenAI."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1)


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=128)
    stream_options: StreamOptions | None = None
    media_io_kwargs: MediaIo | None = None
    mm_processor_kwargs: ProcessorKwargs | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    # taken, and without a meaning here
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    # known by name, and refused unless they ask for nothing
    audio: Any = None
    frequency_penalty: float | None = None
    function_call: Any = None
    functions: list[Any] | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    moderation: Any = None
    parallel_tool_calls: bool | None = None
    prediction: Any = None
    presence_penalty: float | None = None
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = None
    tool_choice: Any = None
    tools: list[Any] | None = None
    verbosity: str | None = None
    web_search_options: Any = None


class StreamRequest(Body):
    """POST /v1/streams."""

    name: Annotated[str, Field(max_length=200)] | None = None
    mode: Literal["image", "video"] | None = None
    system: Annotated[str, Field(max_length=8192)] | None = "You are a helpful assistant."
    keep_turns: bool = False
    queue_size: int = Field(4, ge=1, le=64)
    source: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    fps: float | None = Field(default=None, gt=0, le=120)


class WebhookRequest(Body):
    """Where the events of a rule are sent; secret: 'whsec_' and base64, as Standard Webhooks have it."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    secret: Annotated[str, Field(max_length=200)] | None = None


class RuleRequest(Body):
    """POST /v1/streams/{id}/rules; see `WatchRule`. Frames wait while a question is read, so it is short."""

    question: Annotated[str, Field(min_length=1, max_length=1000)]
    every: float = Field(ge=0.1, le=1e6)
    expect: Annotated[str, Field(max_length=200)] = "yes"
    confirm: int = Field(1, ge=1, le=1000)
    release: int = Field(1, ge=1, le=1000)
    cooldown: float = Field(0.0, ge=0, le=1e6)
    name: Annotated[str, Field(max_length=200)] | None = None
    webhook: WebhookRequest | None = None


class AskRequest(SamplingFields):
    """POST /v1/streams/{id}/ask."""

    question: Text
