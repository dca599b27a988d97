"""InfiniteVLProcessor: turns text, pictures and videos into the tensors that the model takes."""

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
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from infinitevl.errors import CheckpointError, InfiniteVLError, InputError
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.pictures.scaling import check_ratio
from infinitevl.processing.processor.batch import expand_pads, pad_batch, truncate
from infinitevl.processing.processor.call_options import (
    NESTED_KEYWORDS,
    OTHER_NAMES,
    CallOptions,
    sized_media,
)
from infinitevl.processing.processor.loading import (
    FIXED,
    check_image_settings,
    load_image_processor,
    move_files,
    sort_keywords,
)
from infinitevl.processing.processor.video_patches import Clip, split_videos, video_clip
from infinitevl.processing.processor.vision_info import fetch_video, process_vision_info
from infinitevl.processing.prompt.encoding import (
    WORD_JOINER,
    encode_chat,
    protect,
    protect_messages,
    special_strings,
    token_id,
    turn_ids,
    unused_mark,
)
from infinitevl.processing.prompt.messages import check_shown, check_text, mentions
from infinitevl.processing.prompt.template import CHAT_TEMPLATE, DEFAULT_SYSTEM, IMAGE_PAD, VIDEO_PAD

PUBLISHED_FRAME_SIZE = 448
_TEMPLATE_KEYWORDS = ("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask")


class InfiniteVLProcessor(ProcessorMixin):
    """Turns text, pictures and videos into tensors, as Qwen2.5-VL's processor does, without torchvision.

    frame_size: height and width in pixels to which a stream's frames are scaled.
    """

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        frame_size: int = PUBLISHED_FRAME_SIZE,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token, self.video_token = IMAGE_PAD, VIDEO_PAD
        self.image_token_id = token_id(tokenizer, IMAGE_PAD)
        self.video_token_id = token_id(tokenizer, VIDEO_PAD)
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
        """Returns tensors for the model's `forward`.

        text: one or several, with one <|image_pad|> or <|video_pad|> for each picture or video, in order.
        images: one picture, a list, or lists for each text; all that `open_image` takes.
        videos: the same of videos: float [T, C, H, W] of 0 to 255, [T, H, W, C] arrays, lists of frames, or
        files. fps: frames a second of the videos (one number or one for each), 2 if unknown.
        The other keywords are those of CallOptions; sizes in images_kwargs or videos_kwargs hold for that
        kind alone. Returns input_ids, attention_mask, mm_token_type_ids, and if there are media pixel_values,
        image_grid_thw, pixel_values_videos, video_grid_thw and second_per_grid_ts. Raises InputError where
        media and placeholders do not match.
        """
        options = CallOptions.from_kwargs(kwargs)
        ids = None if text is None else self._tokenize(text, options.add_special_tokens)
        return self._assemble(ids, images, videos, options)

    def _tokenize(self, text: str | Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
            raise InputError("text must be one or several strings. Render messages with apply_chat_template.")
        for index, each in enumerate(texts):
            check_text(each, f"text[{index}]" if texts is text else "text")
        return self.tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

    def turn_inputs(
        self,
        content: str | Sequence[dict[str, Any]],
        system: str | None = DEFAULT_SYSTEM,
        *,
        allow_private: bool = False,
    ) -> BatchFeature:
        """Returns tensors of a user's turn up to the start of the assistant's; system=None: no system turn.

        `content`: text or parts with the keys of process_vision_info. Text never becomes a special token.
        Media at private http(s) addresses are refused unless `allow_private`.
        """
        ids = turn_ids(self.tokenizer, content, system)
        check_shown(content, "content")
        options = CallOptions(return_tensors="pt")
        return self.assemble_chat([ids], [{"content": content}], options, allow_private=allow_private)

    def video(self, frames: Any, fps: float | None = None) -> BatchFeature:
        """Returns pixel_values_videos [n, 1176], video_grid_thw [1, 3], second_per_grid_ts [1] of a video."""
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
        """Renders a conversation, or a list of them, as text, or as tensors with `tokenize`.

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
        mark = unused_mark([batch, beside]) if tokenize else WORD_JOINER
        kwargs.pop("sanitize_control_tokens", None)  # text is always sanitized
        template = self._template_text(chat_template)
        specials = special_strings(self.tokenizer)
        paths = [f"conversation[{index}]" for index in range(len(batch))] if is_batch else ["messages"]
        protected = [
            protect_messages(messages, specials, mark, path, template)
            for messages, path in zip(batch, paths, strict=True)
        ]
        known = {*CallOptions.names(), *OTHER_NAMES, *NESTED_KEYWORDS}
        call = {key: kwargs.pop(key) for key in known & set(kwargs)} | (processor_kwargs or {})
        kwargs |= {key: protect(value, specials, mark) for key, value in beside.items() if value}
        _check_mentioned(kwargs, template)
        options = CallOptions.from_kwargs(
            {"return_tensors": return_tensors, "padding": is_batch, **call, "do_sample_frames": False}
        )
        texts: Any = super().apply_chat_template(protected, chat_template, tokenize=False, **kwargs)
        if not tokenize:
            return texts if is_batch else texts[0]
        for messages, path in zip(batch, paths, strict=True):
            for index, message in enumerate(messages):
                check_shown(message["content"], f"{path}[{index}].content")
        ids = [encode_chat(self.tokenizer, text, mark) for text in texts]
        messages = [message for messages in batch for message in messages]
        inputs = self.assemble_chat(ids, messages, options)
        return inputs if return_dict else inputs["input_ids"]

    def _template_text(self, chat_template: str | None) -> str:
        """Returns the template of a call: its own, or one of the processor's by name."""
        named = (
            self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        )
        return str(named.get(chat_template or "default", chat_template or ""))

    def assemble_chat(
        self,
        ids: list[list[int]],
        messages: Sequence[dict[str, Any]],
        options: CallOptions,
        *,
        allow_private: bool = False,
    ) -> BatchFeature:
        """Returns tensors of rendered messages; their media are scaled once, as the image processor would."""
        image_processor = self.image_processor
        sized = [
            {"content": sized_media(message["content"], options, image_processor)} for message in messages
        ]
        images, videos, kwargs = process_vision_info(
            sized, True, image_patch_size=image_processor.patch_size, allow_private=allow_private
        )
        options = replace(options, fps=kwargs["fps"], num_frames=None, do_resize=False, by_kind={})
        return self._assemble(ids, images, videos, options)

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
        """Returns pixel_values [n, 1176], image_grid_thw [images, 3], and each picture's number of tokens."""
        pictures = [open_image(image) for image in _flatten(images)]
        if not pictures:
            return {}, []
        for picture in pictures:
            check_ratio(picture.height, picture.width)
        options = options.of("image")
        least, most = options.limits(self.image_processor.size)
        size = {"shortest_edge": least, "longest_edge": most}
        features = self.image_processor(pictures, return_tensors="pt", do_resize=options.do_resize, size=size)
        return dict(features), self._num_tokens(features["image_grid_thw"])

    def _video_features(self, videos: Any, options: CallOptions) -> tuple[dict[str, Any], list[int]]:
        """Returns the same for videos, and second_per_grid_ts [videos]."""
        flat = [] if videos is None else split_videos(videos)
        if not flat:
            return {}, []
        rates = self._rates(options.fps, len(flat))
        if options.num_frames is not None and not all(isinstance(each, str | os.PathLike) for each in flat):
            raise InputError("num_frames chooses frames of files. Of frames in a list, give those you mean.")
        own = options.of("video")
        limits = own.limits(self.image_processor.size) if own.do_resize else None
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
        """Reads a video file as a chat does, at the rate at which its frames were sampled."""
        image_processor = self.image_processor
        (element,) = sized_media([{"type": "video", "video": path}], options, image_processor)
        frames, fps = fetch_video(element, image_processor.patch_size, return_video_sample_fps=True)
        return video_clip(frames, fps, image_processor, None)

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
        """Decodes generated ids [B, T]; the keywords are those of `batch_decode`."""
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call may return."""
        vision = ["pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids"]
        return [*super().model_input_names, *vision]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes the files that `from_pretrained` reads; each is written elsewhere and then renamed.

        Raises InfiniteVLError, with the older files as they were, if the folder cannot be written.
        """
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".processor-", dir=folder) as aside:
                super().save_pretrained(aside)
                move_files(Path(aside), folder)
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
        """Loads the processor of a folder or hub name, also where its files name Qwen's own classes.

        No code of the folder runs, whatever `trust_remote_code` says. frame_size, chat_template and those
        settings of the image processor that can be changed (size, min_pixels, max_pixels, image_mean,
        image_std, patch_size, ...) replace what the folder says. Texts are padded on the side that
        padding_side or the folder states, else on the left, as generation needs it. The other keywords are
        the tokenizer's and the hub's (model_max_length, revision, cache_dir, token, ...). Raises
        CheckpointError if the folder lacks a tokenizer or an image processor's settings, and InputError for
        unknown keywords.
        """
        changes, own, hub, words = sort_keywords(kwargs)
        check_image_settings(changes | {key: kwargs[key] for key in FIXED if key in kwargs})
        name = os.fspath(pretrained_model_name_or_path)
        try:
            settings, _ = cls.get_processor_dict(name, **hub)
            image_processor = load_image_processor(name, changes, hub)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **words, **hub)
            if "padding_side" not in tokenizer.init_kwargs:
                tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
            template = own.get("chat_template") or settings.get("chat_template") or tokenizer.chat_template
            frame_size = own.get("frame_size") or settings.get("frame_size", PUBLISHED_FRAME_SIZE)
            return cls(image_processor, tokenizer, template, frame_size)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name} holds no processor that can be used: {error}") from error


def _check_mentioned(keywords: dict[str, Any], template: str) -> None:
    """Raises InputError for keywords that the chat template does not use."""
    for name in sorted(set(keywords) - set(_TEMPLATE_KEYWORDS)):
        if not mentions(template, name):
            known = sorted({*CallOptions.names(), *OTHER_NAMES, *_TEMPLATE_KEYWORDS})
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"valid are {known} and what the template names."
            if hasattr(GenerationConfig(), name):
                hint = f"it is for generate(); in a pipeline give generate_kwargs={{{name!r}: ...}}."
            raise InputError(f"{name} is known neither to the processor nor to its chat template; {hint}")


def _flatten(images: Any) -> list[Any]:
    """Flattens one picture, a list of them, or lists for each text."""
    if images is None:
        return []
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple):
        return [image for each in images for image in _flatten(each)]
    return [images]
