"""From a request for a response to the chat that it means, and errors of the chat in the request's words."""

import re
from typing import Any

from infinitevl.server.errors import ApiError, invalid, unsupported
from infinitevl.server.responses_schema import InputImage, InputVideo, Item, ResponsesRequest
from infinitevl.server.sampling import check_neutral
from infinitevl.server.schemas import (
    ChatRequest,
    ImagePart,
    ImageUrl,
    Message,
    TextPart,
    VideoPart,
    VideoSampling,
    VideoUrl,
)

LOGPROBS = "message.output_text.logprobs"
# Fields of OpenAI's API that this server knows and does not offer, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
}
_NEUTRAL_TEXT: dict[str, tuple[object, ...]] = {"format": ({"type": "text"},), "verbosity": ("medium",)}
_NEUTRAL_REASONING: dict[str, tuple[object, ...]] = {
    "effort": ("none",),
    "summary": (),
    "generate_summary": (),
    "context": ("auto",),
    "mode": ("standard",),
}
_MESSAGE = re.compile(r"messages\[(\d+)\]")


class Translation:
    """The chat that a request means; `named` puts an error of the chat into the words of the request.

    Raises:
        ApiError: 400, something that is not offered; names the field.
    """

    def __init__(self, request: ResponsesRequest) -> None:
        _check_offered(request)
        self._places: list[str] = []  # of each message, where in the request it stands
        messages = []
        if request.instructions is not None:
            self._places.append("instructions")
            messages.append(Message(role="system", content=request.instructions))
        if isinstance(request.input, str):
            self._places.append("input")
            messages.append(Message(role="user", content=request.input))
        else:
            for index, item in enumerate(request.input):
                self._places.append(f"input[{index}]")
                messages.append(_message(item, f"input[{index}]"))
        self.chat = ChatRequest(
            model=request.model,
            messages=messages,
            max_completion_tokens=request.max_output_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            logprobs=LOGPROBS in (request.include or ()),
            top_logprobs=request.top_logprobs,
            media_io_kwargs=request.media_io_kwargs,
            mm_processor_kwargs=request.mm_processor_kwargs,
        )

    def named(self, error: ApiError) -> ApiError:
        """An error of the chat, as one of the request."""
        param = None if error.param is None else self._named(error.param)
        param = "input" if param == "messages" else param
        return ApiError(error.status, self._named(error.message), param=param, code=error.code)

    def _named(self, text: str) -> str:
        text = _MESSAGE.sub(lambda found: self._place(int(found[1])), text)
        text = text.replace("_url.url", "_url")
        return text.replace("max_completion_tokens", "max_output_tokens")

    def _place(self, index: int) -> str:
        return self._places[index] if index < len(self._places) else "input"


def _check_offered(request: ResponsesRequest) -> None:
    check_neutral(request, _NEUTRAL)
    if request.text is not None:
        check_neutral(request.text, _NEUTRAL_TEXT, "text.")
    if request.reasoning is not None:
        check_neutral(request.reasoning, _NEUTRAL_REASONING, "reasoning.")
    for index, name in enumerate(request.include or ()):
        if name != LOGPROBS:
            raise unsupported(f"include[{index}]", f"{name[:100]!r} is not offered; {LOGPROBS} is.")
    if request.top_logprobs and not request.include:
        raise invalid(f'top_logprobs needs include=["{LOGPROBS}"].', "top_logprobs")
    if request.stream_options is not None:
        if not request.stream:
            raise invalid("stream_options needs stream=true.", "stream_options")
        if request.stream_options.include_obfuscation:
            raise unsupported("stream_options.include_obfuscation", "leave it out.")


def _message(item: Item, place: str) -> Message:
    if isinstance(item.content, str):
        return Message(role=item.role, content=item.content)
    parts = [_part(part, f"{place}.content[{index}]") for index, part in enumerate(item.content)]
    return Message(role=item.role, content=parts)


def _part(part: Any, place: str) -> TextPart | ImagePart | VideoPart:
    if isinstance(part, InputImage):
        if part.file_id is not None:
            raise unsupported(f"{place}.file_id", "no files are stored here; give image_url.")
        if part.image_url is None:
            raise invalid(f"{place}.image_url: give a data URI or an address.", f"{place}.image_url")
        return ImagePart(type="image_url", image_url=ImageUrl(url=part.image_url, detail=part.detail))
    if isinstance(part, InputVideo):
        sampling = {name: getattr(part, name) for name in VideoSampling.model_fields}
        return VideoPart(type="video_url", video_url=VideoUrl(url=part.video_url, **sampling))
    return TextPart(type="text", text=part.text)
