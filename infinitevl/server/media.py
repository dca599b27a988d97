"""Pictures and videos of a chat as the processor takes them: fetched within limits, sizes checked."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from infinitevl.errors import InfiniteVLError
from infinitevl.processing.fetching.addresses import data_uri, is_data_uri, read_file
from infinitevl.processing.fetching.fetch import fetch
from infinitevl.processing.pictures.opening import open_image
from infinitevl.server.errors import ApiError, invalid
from infinitevl.server.schemas import ChatRequest, ImagePart, ImageUrl, ProcessorKwargs, VideoPart, VideoUrl
from infinitevl.server.security import allowed_file
from infinitevl.server.settings import ServerSettings

LOW_DETAIL = 512 * 512  # pixels
_SAMPLING = ("fps", "num_frames", "max_frames")
_SIZES = ("min_pixels", "max_pixels")


@dataclass(frozen=True)
class Picture:
    """An encoded picture; param: where in the request it stands."""

    data: bytes
    param: str

    def opened(self) -> Image.Image:
        """Its pixels; ApiError where it has none that can be read."""
        try:
            return open_image(self.data)
        except InfiniteVLError as error:
            raise ApiError(400, str(error), param=self.param, code="invalid_image") from error


@dataclass(frozen=True)
class Turn:
    """A message whose media were fetched; pictures take memory once they are opened."""

    role: str
    content: str | list[dict[str, Any]]

    def opened(self) -> dict[str, Any]:
        """For the processor."""
        content: Any = self.content
        if not isinstance(content, str):
            content = [
                {key: value.opened() if isinstance(value, Picture) else value for key, value in part.items()}
                for part in content
            ]
        return {"role": self.role, "content": content}


@dataclass
class Conversation:
    """The messages of a request; `files` holds what must be there until it has run."""

    messages: list["Turn"]
    files: ExitStack = field(default_factory=ExitStack)


class MediaReader:
    """Reads what messages show. Everything here may take long: call it outside of the event loop."""

    def __init__(self, settings: ServerSettings, image_limits: tuple[int, int]) -> None:
        self.settings, self.limits, self.image_limits = settings, settings.limits, image_limits

    def conversation(self, request: ChatRequest) -> Conversation:
        """Messages with their pictures and videos.

        Raises:
            ApiError: 400, something that cannot be shown, or too much of it; says where.
        """
        self._check_counts(request)
        done = Conversation([])
        try:
            for i, message in enumerate(request.messages):
                role = "system" if message.role == "developer" else message.role
                content: Any = message.content
                if not isinstance(content, str):
                    content = [
                        self._part(part, request, done.files, f"messages[{i}].content[{j}]")
                        for j, part in enumerate(content)
                    ]
                done.messages.append(Turn(role, content))
        except BaseException:
            done.files.close()
            raise
        return done

    def _check_counts(self, request: ChatRequest) -> None:
        parts = [part for message in request.messages for part in message.content]
        for kind, most in ((ImagePart, self.limits.pictures), (VideoPart, self.limits.videos)):
            count = sum(isinstance(part, kind) for part in parts)
            if count > most:
                name = "pictures" if kind is ImagePart else "videos"
                raise invalid(f"the messages show {count} {name}, more than {most}, the limit.", "messages")

    def _part(self, part: Any, request: ChatRequest, files: ExitStack, place: str) -> dict[str, Any]:
        if isinstance(part, ImagePart):
            return self._image(part.image_url, request.mm_processor_kwargs, f"{place}.image_url")
        if isinstance(part, VideoPart):
            return self._video(part.video_url, request, files, f"{place}.video_url")
        return {"type": "text", "text": part.text}

    def _image(self, image: ImageUrl, common: ProcessorKwargs | None, place: str) -> dict[str, Any]:
        sources = [(place, image), ("mm_processor_kwargs", common)]
        sizes = agreed(sources, _SIZES)
        least, most = self.image_limits
        if image.detail == "low":
            if "max_pixels" in sizes:
                raise invalid(f"{place}.detail is low, and max_pixels is given too: give one.", place)
            sizes["max_pixels"] = max(least, min(most, LOW_DETAIL))
        self._check_sizes(sizes, place)
        data = self._bytes(image.url, f"{place}.url")
        return {"type": "image", "image": Picture(data, f"{place}.url"), **sizes}

    def _video(self, video: VideoUrl, request: ChatRequest, files: ExitStack, place: str) -> dict[str, Any]:
        io_kwargs = request.media_io_kwargs.video if request.media_io_kwargs else None
        sources = [
            (place, video),
            ("media_io_kwargs.video", io_kwargs),
            ("mm_processor_kwargs", request.mm_processor_kwargs),
        ]
        chosen = agreed(sources, (*_SAMPLING, *_SIZES))
        if "fps" in chosen and "num_frames" in chosen:
            raise invalid(f"{place}: fps and num_frames contradict each other; give one of them.", place)
        if "num_frames" in chosen:
            chosen["nframes"] = chosen.pop("num_frames")
        self._check_sizes(chosen, place)
        self._check_frames(chosen, place)
        data = self._bytes(video.url, f"{place}.url")
        path = Path(files.enter_context(tempfile.TemporaryDirectory()), f"video-{len(data)}")
        path.write_bytes(data)
        return {"type": "video", "video": str(path), **chosen}

    def _check_frames(self, chosen: dict[str, Any], place: str) -> None:
        most = self.limits.video_frames
        if max(chosen.get("nframes", 0), chosen.get("max_frames", 0)) > most:
            raise invalid(f"{place}: more than {most} frames, the limit.", place)
        if "nframes" in chosen and chosen["nframes"] > chosen.pop("max_frames", most):
            raise invalid(f"{place}: num_frames is more than max_frames.", place)

    def _check_sizes(self, sizes: dict[str, int], place: str) -> None:
        if sizes.get("max_pixels", 0) > self.limits.max_pixels:
            raise invalid(f"{place}: max_pixels is at most {self.limits.max_pixels}.", f"{place}.max_pixels")
        if "max_pixels" in sizes and sizes.get("min_pixels", 0) > sizes["max_pixels"]:
            raise invalid(f"{place}: min_pixels is more than max_pixels.", f"{place}.min_pixels")
        if sizes.get("min_pixels", 0) > self.limits.max_pixels:
            raise invalid(f"{place}: min_pixels is at most {self.limits.max_pixels}.", f"{place}.min_pixels")

    def _bytes(self, address: str, param: str) -> bytes:
        """What an address means, at most as much as a body may hold."""
        most = self.limits.body_bytes
        try:
            if is_data_uri(address):
                return data_uri(address, most)
            if address[:8].lower().startswith(("http://", "https://")):
                return fetch(address, allow_private=self.settings.allow_private, max_bytes=most)
            if address[:7].lower() == "file://":
                return read_file(allowed_file(address, self.settings.folders, param), most)
        except InfiniteVLError as error:
            raise ApiError(400, str(error), param=param, code="media_refused") from error
        raise invalid(
            f"{param}: give a data URI, an http(s):// address, or file:// below an allowed folder.", param
        )


def agreed(sources: list[tuple[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """The values that are given under some of the names.

    Raises:
        ApiError: 400, two sources say different things.
    """
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, name, value in _given(sources, names):
        if found.setdefault(name, value) != value:
            raise invalid(
                f"{name} is {found[name]} in {places[name]} and {value} in {place}: give it once.", place
            )
        places.setdefault(name, place)
    return found


def _given(sources: list[tuple[str, Any]], names: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    for place, source in sources:
        for name in names:
            value = getattr(source, name, None)
            if value is not None:
                yield place, name, value
