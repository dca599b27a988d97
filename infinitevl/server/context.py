"""What every call of a server needs, and whose call it is."""

import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from infinitevl.engine.logprobs import TokenNames
from infinitevl.processing.prompt.encoding import turn_ids
from infinitevl.server.keeper import StateKeeper
from infinitevl.server.metrics import Metrics
from infinitevl.server.security import Keys
from infinitevl.server.settings import Limits, ServerSettings
from infinitevl.server.worker import EngineWorker

if TYPE_CHECKING:
    from infinitevl.server.prompts import PromptMaker
    from infinitevl.server.realtime.sessions import Sessions
    from infinitevl.server.registry import Registry
    from infinitevl.server.rule_registry import RuleRegistry


@dataclass
class Context:
    """The parts of one server."""

    settings: ServerSettings
    processor: Any
    worker: EngineWorker
    metrics: Metrics
    keys: Keys
    registry: "Registry"
    keeper: StateKeeper | None
    prompts: "PromptMaker"
    rules: "RuleRegistry"
    realtime: "Sessions"
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def limits(self) -> Limits:
        """How much a request may take."""
        return self.settings.limits

    @functools.cached_property
    def token_names(self) -> TokenNames:
        """What the model's tokens are."""
        return TokenNames(self.processor.tokenizer)

    def num_tokens(self, question: str, system: str | None) -> int:
        """Tokens of a question to a stream."""
        return len(turn_ids(self.processor.tokenizer, question, system))


# Coroutines, though they wait for nothing: plain functions would run in other threads, one after the other.


async def context_of(connection: HTTPConnection) -> Context:
    """The server's parts, as a dependency."""
    return connection.app.state.context


async def owner_of(connection: HTTPConnection) -> str:
    """Whose call it is, as a dependency; 401 for nobody's."""
    return (await context_of(connection)).keys.owner(connection)


Owner = Annotated[str, Depends(owner_of)]
Parts = Annotated[Context, Depends(context_of)]
