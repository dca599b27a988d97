"""From the fields of a request to how an answer is generated."""

from typing import Any

from infinitevl.engine.sampling import Sampling
from infinitevl.server.errors import invalid, unsupported
from infinitevl.server.schemas import ChatRequest, SamplingFields
from infinitevl.server.settings import Limits

DEFAULT_TOKENS = 512
_MOST_STOPS, _LONGEST_STOP = 16, 256
_ANY = "this server answers in text, from text, pictures and videos."
_NO_STORE = "nothing is stored here; send the earlier turns with each request."
_OFFERED = {
    "background": "wait for the answer, or stream it.",
    "conversation": _NO_STORE,
    "name": "the model does not see names; say it in the text.",
    "previous_response_id": _NO_STORE,
    "prompt": "nothing is stored here; send the text itself.",
    "store": f"leave it out, or give false: {_NO_STORE}",
    "truncation": "nothing is left out of what you send; leave out yourself what may be missing.",
}
# Fields of OpenAI's API that this server knows and does not offer, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
# The same of a message: clients send what they got as it came.
_NEUTRAL_OF_MESSAGE: dict[str, tuple[object, ...]] = {
    "name": (),
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
    "tool_call_id": (),
}


def check_offered(request: ChatRequest) -> None:
    """See that nothing is asked for that this server does not offer.

    Raises:
        ApiError: 400, names the field.
    """
    check_neutral(request, _NEUTRAL)
    for index, message in enumerate(request.messages):
        check_neutral(message, _NEUTRAL_OF_MESSAGE, f"messages[{index}].")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream=true.", "stream_options")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "leave it out.")


def check_neutral(fields: Any, neutral: dict[str, tuple[object, ...]], place: str = "") -> None:
    """See that fields which are not offered ask for nothing.

    Args:
        neutral: values that ask for nothing, None aside, of each of these fields.

    Raises:
        ApiError: 400, names the field, after `place`.
    """
    for name, values in neutral.items():
        value = getattr(fields, name)
        if value is not None and value not in values:
            raise unsupported(f"{place}{name}", _OFFERED.get(name, _ANY))


def logprobs_of(request: ChatRequest) -> int | None:
    """How many of the likeliest tokens are told beside each token; None if no log-probabilities are.

    Raises:
        ApiError: 400, top_logprobs without logprobs.
    """
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise invalid("top_logprobs needs logprobs=true.", "top_logprobs")
    return None


def samplings_of(
    request: SamplingFields, limits: Limits, keys: tuple[str, ...], n: int, logprobs: int | None = None
) -> list[Sampling]:
    """How each of n answers is generated; those behind the first have seeds of their own.

    Args:
        keys: names of the fields that say how long an answer may be, of which one may be given.
        logprobs: as `logprobs_of` returns it.

    Raises:
        ApiError: 400, too long an answer, or two lengths that differ.
    """
    given = {name: getattr(request, name) for name in keys if getattr(request, name) is not None}
    if len(set(given.values())) > 1:
        raise invalid(f"{' and '.join(given)} differ: give one of them.", next(iter(given)))
    name, length = next(iter(given.items()), (keys[0], DEFAULT_TOKENS))
    if length > limits.answer_tokens:
        raise invalid(f"{name} is {length}, more than {limits.answer_tokens}, the limit.", name)
    seeds = [None if request.seed is None else request.seed + index for index in range(n)]
    temperature = 0.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    return [Sampling(length, temperature, top_p, seed, logprobs) for seed in seeds]


def stops_of(request: SamplingFields) -> list[str]:
    """Strings before which an answer ends.

    Raises:
        ApiError: 400, too many, too long or empty.
    """
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > _MOST_STOPS or not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
        raise invalid(f"stop: give at most {_MOST_STOPS} strings of 1 to {_LONGEST_STOP} letters.", "stop")
    return stops
