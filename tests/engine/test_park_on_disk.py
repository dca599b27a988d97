"""Sessions whose parked state lies on disk."""

import errno
from pathlib import Path

import pytest
import torch

from infinitevl.engine import slots
from infinitevl.engine.engine import Engine
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession
from infinitevl.state_file import read_file
from tests.support import random_frame, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), tiny_processor(), num_slots=3, mode="video")


def watched(engine: Engine, num_frames: int = 3) -> StreamSession:
    session = StreamSession.on(engine)
    for seed in range(num_frames):  # the third one waits for its partner
        session.observe(random_frame(seed))
    return session


def test_what_comes_back_from_disk_is_the_same_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    with watched(engine) as session, session.fork() as twin:
        session.park()
        session.parked.move_to_disk(tmp_path)
        assert session.is_parked and session.parked.is_on_disk and not list(tmp_path.iterdir())
        for name, tensor in twin.state.tensors().items():
            assert torch.equal(session.state.tensors()[name], tensor), name
        assert not session.is_parked and session.stats() == twin.stats()
        session.observe(random_frame(9))
        twin.observe(random_frame(9))
        assert session.ask("word", max_new_tokens=6) == twin.ask("word", max_new_tokens=6)


def test_a_parked_session_is_saved_without_a_slot(engine: Engine, tmp_path: Path) -> None:
    with watched(engine) as session:
        session.dropped = 7
        session.save(tmp_path / "here")
        session.park()
        session.save(tmp_path / "parked")
        session.parked.move_to_disk(tmp_path)
        session.save(tmp_path / "on disk")
        assert session.is_parked
    saved = [read_file(tmp_path / name)[1] for name in ("here", "parked", "on disk")]
    assert saved[0]["checksum"] and saved[0] == saved[1] == saved[2]


def test_a_full_disk_leaves_the_state_in_memory(engine: Engine, tmp_path: Path, monkeypatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with watched(engine) as session, session.fork() as twin:
        session.park()
        monkeypatch.setattr(slots.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            session.parked.move_to_disk(tmp_path)
        assert not session.parked.is_on_disk and not list(tmp_path.iterdir())
        assert session.ask("word", max_new_tokens=6) == twin.ask("word", max_new_tokens=6)


@pytest.mark.parametrize("piece", [1, 5, 16, 1000])
@pytest.mark.parametrize("keep_turns", [False, True])
def test_a_question_in_pieces_is_answered_as_one_at_once(
    engine: Engine, piece: int, keep_turns: bool
) -> None:
    question = "word says the sign " * 5
    answers = []
    for in_pieces in (False, True):
        with watched(engine) as session:
            session.keep_turns = keep_turns
            if not in_pieces:
                answers.append(session.ask(question, max_new_tokens=6))
            else:
                reader = session.turn_reader(question, piece)
                while (hidden := reader.step()) is None:
                    assert reader.piece <= piece
                answer = session.start(reader.slot, hidden, Sampling(max_new_tokens=6), None, keep_turns)
                answers.append(session.finish(answer))
            session.observe(random_frame(9))
            answers.append((session.stats(), session.ask("word", max_new_tokens=6)))
    assert answers[:2] == answers[2:] and answers[0]
