"""One response: the texts that wait become a question to the stream, and its answer a row of events."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import Turn
from infinitevl.server.errors import ApiError, as_api_error, body_of, invalid
from infinitevl.server.jobs import Ended, Job, Piece
from infinitevl.server.realtime.events import event, new_id, usage
from infinitevl.server.realtime.items import Item, mark
from infinitevl.server.realtime.schemas import ResponseFields

if TYPE_CHECKING:
    from infinitevl.server.realtime.session import RealtimeSession


@dataclass(frozen=True)
class Plan:
    """What a response asks. items: whose texts it asks; they wait until it is over."""

    question: str
    turn: Turn
    max_tokens: int
    is_written: bool
    items: list[Item]
    metadata: dict[str, str] | None


def plan(session: "RealtimeSession", fields: ResponseFields) -> Plan:
    """What a response asks: the texts that wait, or else its own instructions.

    Raises:
        ApiError: 400, there is nothing to ask, or too much of it.
    """
    users, systems = (session.conversation.waiting(role) for role in ("user", "system"))
    question = "\n".join(item.text for item in users)
    instructions = session.config.instructions if fields.instructions is None else fields.instructions
    if not question.strip() and fields.instructions:
        question, instructions = fields.instructions, session.config.instructions
    if not question.strip():
        text = "there is nothing to answer: create an item with input_text, or give response.instructions."
        raise invalid(text, "response")
    system = "\n\n".join([*([instructions] if instructions else []), *(item.text for item in systems)])
    is_written = fields.conversation != "none"
    keep = is_written and session.config.keep_turns
    turn = Turn(keep, system or None, needs_frame=False)
    length = session.config.length(fields.max_output_tokens, session.context.limits, "response")
    return Plan(question, turn, length, is_written, [*systems, *users], fields.metadata)


class Response:
    """A response under way."""

    def __init__(self, session: "RealtimeSession", plan: Plan) -> None:
        self.id, self.item = new_id("resp"), Item("assistant", [], state="asked", status="in_progress")
        self.plan, self._session = plan, session
        self._job: Job | None = None
        self._is_cancelled = self._has_item = False
        mark(plan.items, "asked")

    def cancel(self) -> None:
        """Give it up; `run` then says so."""
        self._is_cancelled = True
        if self._job is not None:
            self._session.context.worker.cancel(self._job)
        self._session.feed.wake()

    async def run(self) -> None:
        """Ask, and send the events; the texts that were asked wait again where no answer came."""
        self._send("response.created", response=self._as_json("in_progress", None))
        try:
            ended = await self._answer()
        except Exception as failure:
            error = as_api_error(failure)
            status = "cancelled" if self._is_cancelled else "failed"
            mark(self.plan.items, "waiting")
            self.item.state = "apart"
            details = {"type": status, "reason": "client_cancelled"} if self._is_cancelled else _failed(error)
            self._end("incomplete", status, details)
        else:
            self.item.state = "read" if self.plan.turn.keep else "apart"
            mark(self.plan.items, self.item.state if self.plan.is_written else "waiting")
            if ended.finish_reason == "length":
                self._end("incomplete", "incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
            else:
                self._end("completed", "completed", None)

    async def _answer(self) -> Ended:
        session, asked = self._session, self.plan
        await session.feed.until_sent(lambda: not self._is_cancelled)
        if self._is_cancelled:
            raise ApiError(499, "the response was cancelled.", code="cancelled")
        job = self._job = Job(
            [Sampling(asked.max_tokens)],
            stream=session.stream,
            question=asked.question,
            turn=asked.turn,
            after=session.stream.num_sent,
            num_prompt_tokens=session.context.num_tokens(asked.question, asked.turn.system),
        )
        session.context.worker.submit(job)
        async for each in job.events():
            if isinstance(each, Piece):
                self._grow(each.text)
            else:
                ended = each
        self._open_item()
        return ended

    def _open_item(self) -> None:
        """Announce the item of the answer, once."""
        if self._has_item:
            return
        self._has_item = True
        self._send("response.output_item.added", **self._place(), item=self.item.as_json())
        if self.plan.is_written:
            previous = self._session.conversation.append(self.item)
            self._send("conversation.item.added", previous_item_id=previous, item=self.item.as_json())
        self.item.content = [{"type": "output_text", "text": ""}]
        self._send_part("response.content_part.added", part={"type": "text", "text": ""})

    def _grow(self, text: str) -> None:
        self._open_item()
        self.item.content[0]["text"] += text
        self._send_part("response.output_text.delta", delta=text)

    def _end(self, item_status: Any, status: str, details: dict[str, Any] | None) -> None:
        """Close what is open, and say how it ended."""
        self.item.status = item_status
        self._session.response = (
            None  # the next one may be asked for as soon as this one says that it is over
        )
        if self._has_item:
            text, shown = self.item.text, self.item.as_json()
            self._send_part("response.output_text.done", text=text)
            self._send_part("response.content_part.done", part={"type": "text", "text": text})
            if self.plan.is_written:
                before = self._session.conversation.before(self.item)
                self._send("conversation.item.done", previous_item_id=before, item=shown)
            self._send("response.output_item.done", **self._place(), item=shown)
        self._send("response.done", response=self._as_json(status, details))

    def _send_part(self, kind: str, **fields: Any) -> None:
        self._send(kind, **self._place(), item_id=self.item.id, content_index=0, **fields)

    def _send(self, kind: str, **fields: Any) -> None:
        self._session.send(event(kind, **fields))

    def _place(self) -> dict[str, Any]:
        return {"response_id": self.id, "output_index": 0}

    def _as_json(self, status: str, details: dict[str, Any] | None) -> dict[str, Any]:
        job = self._job
        answer = None if job is None else job.choices[0].answer
        counts = None
        if job is not None and answer is not None and status != "in_progress":
            counts = usage(job.num_prompt_tokens, len(answer.tokens))
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": [self.item.as_json()] if self._has_item else [],
            "conversation_id": self._session.conversation.id if self.plan.is_written else None,
            "output_modalities": ["text"],
            "max_output_tokens": self.plan.max_tokens,
            "metadata": self.plan.metadata,
            "usage": counts,
        }


def _failed(error: ApiError) -> dict[str, Any]:
    shown = body_of(error)["error"]
    return {"type": "failed", "error": {name: shown[name] for name in ("type", "code", "message")}}
