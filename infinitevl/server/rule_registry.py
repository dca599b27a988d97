"""The rules of all streams of a server: made, listed, ended, kept, and what becomes of their answers."""

import asyncio
import contextlib
import logging
from typing import Any

from infinitevl.engine.rules import WatchRule
from infinitevl.errors import InfiniteVLError
from infinitevl.server.errors import ApiError, busy
from infinitevl.server.events import EventLog
from infinitevl.server.metrics import Metrics
from infinitevl.server.rule_asking import SeenFrame
from infinitevl.server.rule_files import RuleFiles
from infinitevl.server.rules import StreamRule
from infinitevl.server.settings import ServerSettings
from infinitevl.server.streams import Stream
from infinitevl.server.webhooks import Webhook, Webhooks
from infinitevl.server.worker import EngineWorker, until_done

logger = logging.getLogger(__name__)


class RuleRegistry:
    """Rules of the streams of one worker, their events, and their webhooks."""

    def __init__(self, worker: EngineWorker, settings: ServerSettings, metrics: Metrics) -> None:
        self.worker, self.settings, self.metrics = worker, settings, metrics
        self._asking = worker.answering.rules
        self._asking.on_answer = self._take
        self.events = EventLog(worker.streams.__contains__, settings.state_dir)
        folder = settings.state_dir
        self._files = None if folder is None else RuleFiles(folder, self._record)
        self.webhooks = Webhooks(
            settings.allow_private, settings.retries, self._note_sent, metrics.count_webhook
        )
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Find the rules of the streams that there are, and hand out events from now on."""
        self._loop = asyncio.get_running_loop()
        self.events.start()
        await self._run(self._adopt_all)

    def stop(self) -> None:
        """Send and hand out no more; call it when the worker has ended, which let go of all rules."""
        self.webhooks.stop()
        self.events.stop()
        if self._files is not None:
            self._files.stop()

    # ------ calls of clients, in the event loop

    def of(self, stream: Stream) -> list[StreamRule]:
        """The rules of a stream, oldest first."""
        return list(self._asking.rules.get(stream.id, ()))

    def find(self, stream: Stream, rule_id: str) -> StreamRule:
        """A rule of a stream.

        Raises:
            ApiError: 404, it has none of this name.
        """
        for rule in self.of(stream):
            if rule.id == rule_id:
                return rule
        raise ApiError(404, f"the stream has no rule {rule_id[:100]!r}.", code="rule_not_found")

    async def add(
        self, stream: Stream, rule: WatchRule, name: str | None, hook: Webhook | None
    ) -> StreamRule:
        """Watch a stream with a rule; with a state folder it is kept there before this returns.

        Raises:
            ApiError: 404, the stream was deleted; 429, too many rules; 503, it moves, or the disk is full.
        """
        made = StreamRule(stream.id, stream.settings.owner, rule, name, hook)

        def add() -> None:
            stream.check_open()
            self._check_room(made)
            self._asking.rules.setdefault(stream.id, []).append(made)

        await self._run(add)
        try:
            await self._save(stream.id)
        except InfiniteVLError as error:  # it would not be there after a restart
            await self.end(stream, made)
            raise ApiError(503, f"no rule can be made: {error}", code="disk_full") from error
        return made

    async def end(self, stream: Stream, rule: StreamRule) -> None:
        """Ask a rule no more, and forget what its webhook has not taken.

        Raises:
            ApiError: 404, the stream was deleted; 503, another server has it, and its rules.
        """

        def end() -> None:
            if stream.ended_by is not None:
                raise stream.ended_by
            rules = self._asking.rules.get(rule.stream, [])
            self._asking.drop([rule])
            with contextlib.suppress(ValueError):  # another call was faster
                rules.remove(rule)
            if not rules:
                self._asking.rules.pop(rule.stream, None)

        await self._run(end)
        self.webhooks.forget(rule)
        with contextlib.suppress(InfiniteVLError):  # it is logged, and tried again at the next change
            await self._save(rule.stream)

    async def delete(self, stream: Stream, rules: list[StreamRule]) -> None:
        """Forget the rules of a stream that is deleted, on disk too; `leave` returned them."""
        self.forget(stream, rules)
        if self._files is not None:
            with contextlib.suppress(InfiniteVLError):  # it is logged
                await until_done(self._files.put(stream.id, []))

    def forget(self, stream: Stream, rules: list[StreamRule]) -> None:
        """Send and hand out nothing more of a stream, whose rules these were."""
        for rule in rules:
            self.webhooks.forget(rule)
        self.events.forget(stream.id)

    # ------ in the worker's thread

    def adopt(self, stream: Stream) -> None:
        """Take over the rules that are kept of a stream which was found again, before it is used."""
        if self._files is None:
            return
        newest = stream.stats.seconds if stream.stats.frames else None
        rules = []
        for record in self._files.load(stream.id):
            try:
                rules.append(StreamRule.of_record(record, newest))
            except (TypeError, KeyError, ValueError, InfiniteVLError) as error:
                logger.error("a rule of %s is left out: %s", stream.id, error)
        if rules:
            self._asking.rules[stream.id] = rules
        for rule in rules:
            self._soon(rule)

    def _adopt_all(self) -> None:
        for stream in self.worker.streams.values():
            self.adopt(stream)

    def let_go(self, stream: Stream, is_saved: bool) -> None:
        """Let go of the rules of a stream that goes on elsewhere, or later.

        Args:
            is_saved: they are written as they are now; else another server may have them.
        """
        with self.worker.changed:  # nothing is written of it afterwards: whoever has it next may write
            rules = self.leave(stream)
            record = [rule.as_record() for rule in rules]
        if self._files is not None and is_saved and rules:
            with contextlib.suppress(InfiniteVLError):  # then they stay as they were saved last
                self._files.put(stream.id, record).result()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.forget, stream, rules)

    def leave(self, stream: Stream) -> list[StreamRule]:
        """Ask the rules of a stream no more; returns them."""
        rules = self._asking.rules.pop(stream.id, [])
        self._asking.drop(rules)
        return rules

    def reset(self, stream: Stream) -> None:
        """Start all rules of a stream anew, whose state is another one now."""
        rules = self._asking.rules.get(stream.id, [])
        self._asking.drop(rules)
        for rule in rules:
            rule.state.reset()
        if rules and self._files is not None:
            self._files.save(stream.id)

    def _check_room(self, made: StreamRule) -> None:
        limits, rules = self.settings.limits, self._asking.rules
        if len(rules.get(made.stream, ())) >= limits.rules_per_stream:
            raise busy(f"the stream has {limits.rules_per_stream} rules, the limit: delete one.")
        if sum(rule.owner == made.owner for each in rules.values() for rule in each) >= limits.rules_per_key:
            raise busy(f"the streams of this key have {limits.rules_per_key} rules, the limit: delete one.")

    async def _run(self, function: Any) -> Any:
        return await until_done(self.worker.call(function))

    async def _save(self, stream: str) -> None:
        if self._files is not None:
            await until_done(self._files.save(stream))

    def _take(self, rule: StreamRule, seen: SeenFrame, text: str) -> None:
        was_on = rule.state.is_on
        with self.worker.changed:
            event = rule.push(text, seen.time, seen.frame)
        self.metrics.rules_asked.inc()
        if event is not None:
            self.metrics.events.inc()
            self.events.publish(rule.owner, event, seen.image)
            self._soon(rule)
        if self._files is not None and was_on != rule.state.is_on:
            self._files.save(rule.stream)

    def _soon(self, rule: StreamRule) -> None:
        if rule.webhook is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.webhooks.wake, rule)

    # ------ records, from any thread

    def _record(self, stream: str) -> list[dict[str, Any]] | None:
        with self.worker.changed:  # an event and the rule that is on are kept together or not at all
            rules = self._asking.rules.get(stream)
            if rules is None and stream not in self.worker.streams:
                return None
            return [rule.as_record() for rule in rules or ()]

    def _note_sent(self, rule: StreamRule) -> None:
        if self._files is not None:
            self._files.save(rule.stream)
