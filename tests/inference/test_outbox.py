"""What a worker has to tell: the tokens of an answer under way go together, and nothing else waits."""

from __future__ import annotations

from localllm.inference.engine import wire
from localllm.inference.engine.outbox import PATIENCE_S, Outbox
from localllm.inference.errors import ProviderError
from localllm.inference.types import Chunk, Event, Finished, Prefill, TokenLogprob, Usage

STEP_S = PATIENCE_S * 0.4


class Wire:
    """The web process's end, at a time of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[list[wire.FromWorker]] = []
        self.outbox = Outbox(self._take, clock=lambda: self.now)
        self._unframer = wire.Unframer()

    def _take(self, frames: bytes) -> None:
        self.sent.append([wire.from_worker.decode(body) for body in self._unframer.feed(frames)])

    def step(self, *events: tuple[int, Event], after_s: float = STEP_S) -> None:
        """So long after the last one, with another of the same length to follow."""
        self.now += after_s
        for id, event in events:
            self.outbox.put(wire.Told(id, event))
        self.outbox.flush(after_s)


def chunk(text: str) -> Chunk:
    return Chunk(text, (ord(text),))


def test_tokens_of_short_steps_go_together_and_the_first_one_at_once() -> None:
    web = Wire()
    for text in "abcde":
        web.step((1, chunk(text)))
    web.outbox.flush()
    assert web.sent == [
        [wire.Told(1, Chunk("a", (97,)))],
        [wire.Told(1, Chunk("bcd", (98, 99, 100)))],
        [wire.Told(1, Chunk("e", (101,)))],
    ]


def test_no_token_waits_longer_than_it_may() -> None:
    web = Wire()
    web.step((1, chunk("a")))
    for _ in range(200):
        came_at, num_sent = web.now + 0.001, len(web.sent)
        while len(web.sent) == num_sent:
            web.step((1, chunk("b")), after_s=0.001)
        assert web.now - came_at <= PATIENCE_S


def test_a_long_step_is_not_waited_for() -> None:
    web = Wire()
    for text in "abc":
        web.step((1, chunk(text)), after_s=2 * PATIENCE_S)
    assert len(web.sent) == 3


def test_whatever_is_no_token_goes_at_once_and_in_order() -> None:
    web = Wire()
    web.step((1, Prefill(5, 10)))
    web.step((1, chunk("a")))
    web.step((1, chunk("b")), (2, chunk("x")))
    web.step((1, chunk("c")), (2, chunk("y")))
    end = Finished(reason="stop", seed=1, usage=Usage())
    web.step((1, chunk("d")), (1, end))
    assert web.sent[2:] == [
        [wire.Told(1, chunk("b")), wire.Told(2, chunk("x"))],
        [wire.Told(1, Chunk("cd", (99, 100))), wire.Told(2, chunk("y")), wire.Told(1, end)],
    ]


def test_an_error_takes_what_waits_with_it() -> None:
    web = Wire()
    web.step((1, chunk("a")))
    web.step((1, chunk("b")))
    web.outbox.put(wire.Failed.of(1, ProviderError("It broke.")))
    web.outbox.flush(STEP_S)
    assert [type(message) for message in web.sent[-1]] == [wire.Told, wire.Failed]


def test_an_id_that_has_ended_begins_anew() -> None:
    web = Wire()
    for _ in range(2):
        web.step((1, chunk("a")))
        web.step((1, Finished(reason="stop", seed=1, usage=Usage())))
    assert len(web.sent) == 4


def test_pieces_keep_all_that_belongs_to_them() -> None:
    a, b = TokenLogprob("a", -1.0), TokenLogprob("b", -2.0)
    joined = Chunk("", (1,), (), "hm") + Chunk("a", (2,), (a,), ".") + Chunk("b", (3, 4), (b,))
    assert joined == Chunk("ab", (1, 2, 3, 4), (a, b), "hm.")


def test_nothing_is_sent_when_there_is_nothing() -> None:
    web = Wire()
    web.outbox.flush()
    assert web.sent == []
