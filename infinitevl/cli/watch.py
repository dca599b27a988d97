"""`infinitevl watch`: watches a source, answers questions, saves the stream and a report."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from infinitevl.cli.command import check_folder, load_model, note_of
from infinitevl.cli.output import without_password
from infinitevl.cli.sizes import growth_per_token
from infinitevl.cli.terminal import Display, JsonDisplay, TextDisplay, TypedLines, on_a_terminal
from infinitevl.engine.rules import WatchEvent, WatchRule
from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.evaluation.questions import TimedQuestion, parse_condition, parse_question
from infinitevl.evaluation.report import Recorder, write_report
from infinitevl.evaluation.streaming import Event, Noticed, Outcome, Seen, WatchSettings, nothing_typed, watch
from infinitevl.interrupt import Interrupt
from infinitevl.processing.fetching.addresses import local_path
from infinitevl.processing.sources.frames import DEFAULT_FPS, Source
from infinitevl.processing.sources.opening import open_source

if TYPE_CHECKING:
    from infinitevl.engine.session import StreamSession

_ANY_MOMENT = "type a question at any moment"
_UNTIL_EMPTY = f"{_ANY_MOMENT}; when all has been seen, an empty line ends"


@dataclass(frozen=True)
class WatchOptions:
    """The options of the command, by the names that they have on the command line.

    note: no option; what is said once, under the first answer.
    """

    source: str
    ask: list[str] = field(default_factory=list)
    fps: float | None = None
    fetch_every: float | None = None
    when: list[str] = field(default_factory=list)
    when_every: float = 10.0
    confirm: int = 1
    release: int = 1
    cooldown: float = 0.0
    events: str | None = None
    live: bool | None = None
    mode: Literal["image", "video"] | None = None
    keep_turns: bool = False
    save_state: str | None = None
    resume_state: str | None = None
    max_frames: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    allow_private: bool = False
    report: str | None = None
    as_json: bool = False
    note: str = ""


def run_watch(
    options: WatchOptions,
    *,
    model: str | None,
    device: str | None,
    dtype: str,
    quantization: str,
    attention: str | None = None,
) -> None:
    """Watch, answer, and write the files; options are checked before anything is loaded."""
    questions = [parse_question(line) for line in options.ask]
    rules = _rules(options)
    _check_outputs(options)
    with _open_source(options) as source:
        network, processor = load_model(model, device, dtype, quantization, attention)
        session = _open_session(options, network, processor)
        recorder = Recorder()
        options = replace(options, note=note_of(model))
        outcome = _watch_and_save(options, session, source, questions, rules, recorder)
    if options.report is not None:
        growth = growth_per_token(network.config.text_config, network.dtype)
        names = {"title": _title(options.source), "model": model or "the built-in model"}
        write_report(options.report, recorder, outcome.summary, **names, growth_per_token=growth)
    if outcome.broken is not None:
        raise outcome.broken


def _title(source: str) -> str:
    """The name of a file or folder, or an address without its password."""
    path = local_path(source)
    is_kept = path.is_file() or path.is_dir()
    return path.resolve().name if is_kept else without_password(source)


def _open_source(options: WatchOptions) -> Source:
    return open_source(
        options.source,
        fps=options.fps,
        live=options.live,
        every=options.fetch_every,
        allow_private=options.allow_private,
    )


def _check_outputs(options: WatchOptions) -> None:
    """Check that the files can be written, and that no two options name the same one."""
    for path in (options.save_state, options.report, options.events):
        check_folder(path)
    named = {"the source": options.source, "--save-state": options.save_state, "--report": options.report}
    named["--events"] = options.events
    if options.resume_state != options.save_state:  # a stream may be kept where it came from
        named["--resume-state"] = options.resume_state
    taken: dict[str, str] = {}
    for name, path in named.items():
        place = "" if path is None else os.path.realpath(path)
        if place in taken:
            raise InputError(f"{name} and {taken[place]} are both {path}: give each a file of its own")
        if place:
            taken[place] = name


def _watch_and_save(
    options: WatchOptions,
    session: "StreamSession",
    source: Source,
    questions: list[TimedQuestion],
    rules: list[WatchRule],
    recorder: Recorder,
) -> Outcome:
    """Watch, and save the stream if --save-state asks for it, however watching ends."""
    path, frames = options.save_state, session.stats().frames
    try:
        outcome = _watch(options, session, source, questions, rules, recorder)
    except BaseException:
        if path is not None and session.stats().frames > frames:
            _save(session, path)
            print(f"the stream so far is kept in {path}", file=sys.stderr)
        raise
    if path is not None:
        _save(session, path)
    return outcome


def _save(session: "StreamSession", path: str) -> None:
    """Keep the stream; only a second Ctrl-C cuts that short."""
    with Interrupt(f"Writing {path} first; Ctrl-C once more stops at once, without it.\n"):
        session.save(path)


def _open_session(options: WatchOptions, model: Any, processor: Any) -> "StreamSession":
    from infinitevl.engine.session import StreamSession

    if options.resume_state is None:
        return StreamSession(model, processor, mode=options.mode or "image", keep_turns=options.keep_turns)
    session = StreamSession.load(options.resume_state, model, processor)
    if options.mode not in (None, session.mode) or options.keep_turns > session.keep_turns:
        kept = f"mode {session.mode} and {'' if session.keep_turns else 'no '}kept turns"
        raise InputError(
            f"{options.resume_state} has {kept}, and keeps that: leave --mode and --keep-turns out"
        )
    return session


def _watch(
    options: WatchOptions,
    session: "StreamSession",
    source: Source,
    questions: list[TimedQuestion],
    rules: list[WatchRule],
    recorder: Recorder,
) -> Outcome:
    with contextlib.ExitStack() as stack:
        typed = _typed_lines(stack, options, has_questions=bool(questions or rules))
        text = TextDisplay(source.num_frames, typed, options.note)
        display: Display = JsonDisplay() if options.as_json else text
        stack.callback(display.pause)
        ended = 0.0

        def show(event: Event) -> None:
            nonlocal ended
            if isinstance(event, Seen):  # the last frame is always reported
                ended = event.at
            if isinstance(event, Noticed) and options.events is not None:
                _append(options.events, event)
            recorder(event)
            display(event)

        _watch_for(session, rules, show)
        outcome = watch(
            session,
            source,
            questions,
            show,
            typed=typed or nothing_typed,
            afterwards=() if typed is None or questions or rules else typed.until_empty(),
            settings=_settings(options, session),
        )
        for moment in sorted({question.at for question in questions if question.at is not None}):
            if moment > ended:
                display.unreached(ended, moment)
        display.finish(outcome.summary)
    _say_what_never_came(session)
    return outcome


def _say_what_never_came(session: "StreamSession") -> None:
    """Tell what rules without an event heard instead: mostly it is the question that must change."""
    for each in session.watches:
        if each.num_asked and not each.num_events:
            rule = each.rule
            print(
                f"no event: {rule.question!r} was asked {each.num_asked} times for {rule.expect!r}; "
                f"the last answer was {each.last_answer!r}",
                file=sys.stderr,
            )


def _rules(options: WatchOptions) -> list[WatchRule]:
    """The rules of --when.

    Raises:
        InputError: one that cannot be, or an option for rules without any.
    """
    if not options.when and options.events is not None:
        raise InputError("--events is for the events of --when; give one, as in --when 'Is it red?'")
    kept = options.confirm, options.release, options.cooldown
    parts = [parse_condition(line) for line in options.when]
    return [WatchRule(question, options.when_every, expect, *kept) for question, expect in parts]


def _watch_for(session: "StreamSession", rules: list[WatchRule], show: Callable[[Event], None]) -> None:
    """Show the events of rules from now on."""

    def tell(event: WatchEvent) -> None:
        rule, frame = event.rule, event.frame_index + 1
        stats = session.stats()
        show(Noticed(event.time, rule.question, rule.expect, event.answer, frame, event.picture, stats))

    for rule in rules:
        session.watch(
            rule.question,
            every=rule.every,
            on_event=tell,
            expect=rule.expect,
            confirm=rule.confirm,
            release=rule.release,
            cooldown=rule.cooldown,
        )


def _append(path: str, event: Noticed) -> None:
    """Add an event to a file, as a line of JSON."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event.line(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise InfiniteVLError(f"--events {path} could not be written: {error.strerror}") from error


def _typed_lines(
    stack: contextlib.ExitStack, options: WatchOptions, *, has_questions: bool
) -> TypedLines | None:
    """Return the lines typed at a terminal; none without a terminal."""
    if options.as_json or not on_a_terminal():
        return None
    return stack.enter_context(TypedLines(_ANY_MOMENT if has_questions else _UNTIL_EMPTY))


def _settings(options: WatchOptions, session: "StreamSession") -> WatchSettings:
    """Return the time of the first frame: of a resumed stream, one frame after its last."""
    resumed = options.resume_state is not None
    starts_at = session.stats().seconds + 1 / (options.fps or DEFAULT_FPS) if resumed else None
    return WatchSettings(options.sampling, options.max_frames, starts_at)
