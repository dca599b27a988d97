"""From the fields of a request to how an answer is generated."""

from infinitevl.engine.sampling import Sampling
from infinitevl.server.errors import invalid, unsupported
from infinitevl.server.schemas import ChatRequest, SamplingFields
from infinitevl.server.settings import Limits

DEFAULT_TOKENS = 512
_MOST_STOPS, _LONGEST_STOP = 16, 256
# Fields of OpenAI's API that this server knows and does not offer, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}


def check_offered(request: ChatRequest) -> None:
    """See that nothing is asked for that this server does not offer.

    Raises:
        ApiError: 400, names the field.
    """
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise unsupported(name, "this server answers in text, from text, pictures and videos.")
    for index, message in enumerate(request.messages):
        if message.name is not None:
            raise unsupported(f"messages[{index}].name", "the model does not see names; say it in the text.")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream=true.", "stream_options")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "leave it out.")


def samplings_of(request: SamplingFields, limits: Limits, keys: tuple[str, ...], n: int) -> list[Sampling]:
    """How each of n answers is generated; those behind the first have seeds of their own.

    Args:
        keys: names of the fields that say how long an answer may be, of which one may be given.

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
    return [Sampling(length, temperature, top_p, seed) for seed in seeds]


def stops_of(request: SamplingFields) -> list[str]:
    """Strings before which an answer ends.

    Raises:
        ApiError: 400, too many, too long or empty.
    """
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > _MOST_STOPS or not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
        raise invalid(f"stop: give at most {_MOST_STOPS} strings of 1 to {_LONGEST_STOP} letters.", "stop")
    return stops
