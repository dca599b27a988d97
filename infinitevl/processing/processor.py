"""InfiniteVLProcessor: text, pictures and videos to the tensors that the model takes, without torchvision."""

import difflib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from infinitevl.errors import CheckpointError, InfiniteVLError, InputError
from infinitevl.processing import prompt
from infinitevl.processing.batch import expand_pads, pad_batch, truncate
from infinitevl.processing.clips import Clip, split_videos, video_clip
from infinitevl.processing.image_settings import (
    CHANGEABLE,
    FIXED,
    check_image_settings,
    load_image_processor,
)
from infinitevl.processing.images import check_ratio, open_image
from infinitevl.processing.media import sized_media
from infinitevl.processing.options import NESTED_KEYWORDS, OTHER_NAMES, CallOptions
from infinitevl.processing.vision_info import fetch_video, process_vision_info

PUBLISHED_FRAME_SIZE = 448
_TEMPLATE_KEYWORDS = ("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask")
_HUB_KEYS = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies"),
    *("code_revision", "_commit_hash", "_from_auto", "user_agent"),
)
_TOKENIZER_KEYS = ("padding_side", "truncation_side", "model_max_length")
_OWN_KEYS = ("frame_size", "chat_template")


class InfiniteVLProcessor(ProcessorMixin):
    """Called as Qwen2.5-VL's processor, and with the same results; needs no torchvision.

    frame_size: height and width in pixels to which a stream's frames are scaled.
    """

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        frame_size: int = PUBLISHED_FRAME_SIZE,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or prompt.CHAT_TEMPLATE)
        self.image_token, self.video_token = prompt.IMAGE_PAD, prompt.VIDEO_PAD
        self.image_token_id = prompt.token_id(tokenizer, prompt.IMAGE_PAD)
        self.video_token_id = prompt.token_id(tokenizer, prompt.VIDEO_PAD)
        self.frame_size = frame_size
        block = image_processor.patch_size * image_processor.merge_size
        if frame_size < block or frame_size % block:
            raise InputError(f"frame_size is {frame_size}; give a multiple of {block} pixels.")

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tensors for the model's `forward`.

        text: one or several, with one <|image_pad|> or <|video_pad|> for each picture or video, in order.
        images: one picture, a list, or lists for each text; all that `open_image` takes.
        videos: the same of videos: float [T, C, H, W] of 0 to 255, [T, H, W, C] arrays, lists of frames, or
        files. fps: frames a second of the videos (one number or one for each), 2 if nobody knows.
        The other keywords are those of CallOptions. Returns input_ids, attention_mask, mm_token_type_ids, and
        where there are any pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw and
        second_per_grid_ts. Raises InputError where media and placeholders do not match.
        """
        options = CallOptions.from_kwargs(kwargs)
        ids = None if text is None else self._tokenize(text, options.add_special_tokens)
        return self._assemble(ids, images, videos, options)

    def _tokenize(self, text: str | Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
            raise InputError("text must be one or several strings. Render messages with apply_chat_template.")
        for index, each in enumerate(texts):
            prompt.check_text(each, f"text[{index}]" if texts is text else "text")
        return self.tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

    def turn_inputs(
        self,
        content: str | Sequence[dict[str, Any]],
        system: str | None = prompt.DEFAULT_SYSTEM,
    ) -> BatchFeature:
        """Tensors of one user's turn, the assistant's start included, without a system turn if that is None.

        `content`: text or parts with the keys of process_vision_info. Text stays text, whatever is in it.
        """
        ids = prompt.turn_ids(self.tokenizer, content, system)
        prompt.check_shown(content, "content")
        return self.assemble_chat([ids], [{"content": content}], CallOptions(return_tensors="pt"))

    def video(self, frames: Any, fps: float | None = None) -> BatchFeature:
        """pixel_values_videos [n, 1176], video_grid_thw [1, 3], second_per_grid_ts [1] of one video."""
        return self._assemble(None, None, [frames], CallOptions(return_tensors="pt", fps=fps))

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The text of a conversation (a list for several), or its tensors with `tokenize`.

        Text in the messages never becomes a special token. In the rendered text an invisible word joiner
        breaks each special string that a message held; with `tokenize` the ids are those of the plain text.
        `processor_kwargs` and keywords of CallOptions go to the processor (fps: at which videos are sampled
        that say nothing themselves), all others (such as add_generation_prompt and add_vision_id) to the
        template. Returns the ids alone without `return_dict`.
        """
        if not isinstance(conversation, list | tuple) or not conversation:
            raise InputError("There is no message. Give a list of messages with role and content.")
        if kwargs.get("return_assistant_tokens_mask"):
            raise InputError("return_assistant_tokens_mask is not offered: find the turns by their tokens.")
        is_batch = not isinstance(conversation[0], dict)
        batch = list(conversation) if is_batch else [conversation]
        beside = {key: kwargs.pop(key, None) for key in ("tools", "documents")}
        mark = prompt.unused_mark([batch, beside]) if tokenize else prompt.WORD_JOINER
        kwargs.pop("sanitize_control_tokens", None)  # always so
        template = self._template_text(chat_template)
        specials = prompt.special_strings(self.tokenizer)
        paths = [f"conversation[{index}]" for index in range(len(batch))] if is_batch else ["messages"]
        protected = [
            prompt.protect_messages(messages, specials, mark, path, template)
            for messages, path in zip(batch, paths, strict=True)
        ]
        known = {*CallOptions.names(), *OTHER_NAMES, *NESTED_KEYWORDS}
        call = {key: kwargs.pop(key) for key in known & set(kwargs)} | (processor_kwargs or {})
        kwargs |= {key: prompt.protect(value, specials, mark) for key, value in beside.items() if value}
        _check_mentioned(kwargs, template)
        options = CallOptions.from_kwargs(
            {"return_tensors": return_tensors, "padding": is_batch, **call, "do_sample_frames": False}
        )
        texts: Any = super().apply_chat_template(protected, chat_template, tokenize=False, **kwargs)
        if not tokenize:
            return texts if is_batch else texts[0]
        for messages, path in zip(batch, paths, strict=True):
            for index, message in enumerate(messages):
                prompt.check_shown(message["content"], f"{path}[{index}].content")
        ids = [prompt.encode_chat(self.tokenizer, text, mark) for text in texts]
        messages = [message for messages in batch for message in messages]
        inputs = self.assemble_chat(ids, messages, options)
        return inputs if return_dict else inputs["input_ids"]

    def _template_text(self, chat_template: str | None) -> str:
        """The template that a call means: its own, or one of the processor's by name."""
        named = (
            self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        )
        return str(named.get(chat_template or "default", chat_template or ""))

    def assemble_chat(
        self, ids: list[list[int]], messages: Sequence[dict[str, Any]], options: CallOptions
    ) -> BatchFeature:
        """Tensors of rendered messages: their media are scaled once, as the image processor would."""
        look = self.image_processor
        factor = look.patch_size * look.merge_size
        sized = [
            {"content": sized_media(message["content"], options, look.size, factor)} for message in messages
        ]
        images, videos, kwargs = process_vision_info(sized, True, image_patch_size=look.patch_size)
        return self._assemble(
            ids, images, videos, replace(options, fps=kwargs["fps"], num_frames=None, do_resize=False)
        )

    def _assemble(
        self, ids: list[list[int]] | None, images: Any, videos: Any, options: CallOptions
    ) -> BatchFeature:
        features, image_tokens = self._image_features(images, options)
        video_features, video_tokens = self._video_features(videos, options)
        features |= video_features
        if ids is not None:
            ids = expand_pads(ids, self.image_token_id, image_tokens, self.image_token)
            ids = expand_pads(ids, self.video_token_id, video_tokens, self.video_token)
            kinds = {self.image_token_id: 1, self.video_token_id: 2}
            ids = truncate(ids, set(kinds), self.tokenizer.truncation_side, options)
            features = pad_batch(ids, kinds, self.tokenizer, options) | features
        if not features:
            raise InputError("There is nothing to process: give text, images or videos.")
        return BatchFeature(features, tensor_type=options.return_tensors)

    def _image_features(self, images: Any, options: CallOptions) -> tuple[dict[str, Any], list[int]]:
        """pixel_values [n, 1176] and image_grid_thw [images, 3], and how many tokens each picture takes."""
        pictures = [open_image(image) for image in _flatten(images)]
        if not pictures:
            return {}, []
        for picture in pictures:
            check_ratio(picture.height, picture.width)
        least, most = options.limits(self.image_processor.size)
        size = {"shortest_edge": least, "longest_edge": most}
        features = self.image_processor(pictures, return_tensors="pt", do_resize=options.do_resize, size=size)
        return dict(features), self._num_tokens(features["image_grid_thw"])

    def _video_features(self, videos: Any, options: CallOptions) -> tuple[dict[str, Any], list[int]]:
        """The same of videos, with second_per_grid_ts [videos]."""
        flat = [] if videos is None else split_videos(videos)
        if not flat:
            return {}, []
        rates = self._rates(options.fps, len(flat))
        if options.num_frames is not None and not all(isinstance(each, str | os.PathLike) for each in flat):
            raise InputError("num_frames chooses frames of files. Of frames in a list, give those you mean.")
        limits = options.limits(self.image_processor.size) if options.do_resize else None
        clips = [
            self._file_clip(video, replace(options, fps=fps))
            if isinstance(video, str | os.PathLike)
            else video_clip(video, fps, self.image_processor, limits)
            for video, fps in zip(flat, rates, strict=True)
        ]
        grids = torch.tensor([clip.grid for clip in clips])
        features = {
            "pixel_values_videos": torch.cat([clip.patches for clip in clips]),
            "video_grid_thw": grids,
            "second_per_grid_ts": torch.tensor([clip.seconds for clip in clips]),
        }
        return features, self._num_tokens(grids)

    def _file_clip(self, path: str | os.PathLike[str], options: CallOptions) -> Clip:
        """A video file as in a chat; it states the rate at which its frames could be taken."""
        look = self.image_processor
        factor = look.patch_size * look.merge_size
        (element,) = sized_media([{"type": "video", "video": path}], options, look.size, factor)
        frames, fps = fetch_video(element, look.patch_size, return_video_sample_fps=True)
        return video_clip(frames, fps, look, None)

    def _num_tokens(self, grids: Tensor) -> list[int]:
        return (grids.prod(-1) // self.image_processor.merge_size**2).tolist()

    @staticmethod
    def _rates(fps: float | Sequence[float] | None, num_videos: int) -> list[float | None]:
        rates: list[float | None]
        rates = [fps] * num_videos if fps is None or isinstance(fps, int | float) else list(fps)
        if len(rates) != num_videos:
            raise InputError(
                f"fps has {len(rates)} values for {num_videos} videos. Give one number or one each."
            )
        return rates

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Texts of generated ids [B, T]; the keywords are those of `batch_decode`."""
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        """What a call may return."""
        vision = ["pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids"]
        return [*super().model_input_names, *vision]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the files that `from_pretrained` reads, each one aside first and then renamed.

        Raises InfiniteVLError, with the older files as they were, if the folder cannot be written.
        """
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".processor-", dir=folder) as aside:
                super().save_pretrained(aside)
                _move_files(Path(aside), folder)
        except OSError as error:
            raise InfiniteVLError(
                f"The processor could not be saved to {folder}: {error}. "
                "Free some space or choose another folder, and save again."
            ) from error
        if push_to_hub:
            super().save_pretrained(save_directory, push_to_hub=True, **kwargs)
        return [str(folder / PROCESSOR_NAME)]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "InfiniteVLProcessor":
        """The processor of a folder or hub name, also where its files name Qwen's own classes.

        No code of the folder runs, whatever `trust_remote_code` says. frame_size, chat_template and those
        settings of the image processor that can be changed (size, min_pixels, max_pixels, image_mean,
        image_std, patch_size, ...) replace what the folder says. Texts are padded on the left, as generation
        needs it; padding_side="right" changes that. The other keywords are the tokenizer's and the hub's
        (model_max_length, revision, cache_dir, token, ...). Raises CheckpointError if the folder lacks a
        tokenizer or an image processor's settings, and InputError for keywords that nobody knows.
        """
        changes, own, hub, words = _sort_keywords(kwargs)
        check_image_settings(changes | {key: kwargs[key] for key in FIXED if key in kwargs})
        name = os.fspath(pretrained_model_name_or_path)
        try:
            settings, _ = cls.get_processor_dict(name, **hub)
            image_processor = load_image_processor(name, changes, hub)
            words = {"padding_side": "left", **words}
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **words, **hub)
            template = own.get("chat_template") or settings.get("chat_template") or tokenizer.chat_template
            frame_size = own.get("frame_size") or settings.get("frame_size", PUBLISHED_FRAME_SIZE)
            return cls(image_processor, tokenizer, template, frame_size)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name} holds no processor that can be used: {error}") from error


def _sort_keywords(kwargs: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Keywords of from_pretrained for the image processor, the processor, the hub and the tokenizer."""
    groups = (CHANGEABLE, _OWN_KEYS, _HUB_KEYS, _TOKENIZER_KEYS)
    known = {name for group in groups for name in group} | {*FIXED, "trust_remote_code", "use_fast"}
    if unknown := sorted(set(kwargs) - known):
        valid = sorted(name for name in known if name[0] != "_")
        raise InputError(f"A processor cannot be loaded with {unknown}; valid keywords are {valid}.")
    return tuple({name: kwargs[name] for name in group if name in kwargs} for group in groups)


def _check_mentioned(keywords: dict[str, Any], template: str) -> None:
    """InputError for keywords that the chat template has no place for, and that nobody else would hear."""
    for name in sorted(set(keywords) - set(_TEMPLATE_KEYWORDS)):
        if not prompt.mentions(template, name):
            known = sorted({*CallOptions.names(), *OTHER_NAMES, *_TEMPLATE_KEYWORDS})
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"valid are {known} and what the template names."
            raise InputError(f"{name} is known neither to the processor nor to its chat template; {hint}")


def _move_files(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)


def _flatten(images: Any) -> list[Any]:
    """One picture, a list of them, or lists for each text, as a flat list."""
    if images is None:
        return []
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple):
        return [image for each in images for image in _flatten(each)]
    return [images]
