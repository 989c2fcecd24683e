"""Who goes in the next batch, and in which slot. Lists and counters only: no llama.cpp, no threads.

There is no prefill phase and no decode phase: a sequence is some number of tokens behind, one when it
is decoding, many when it is new, and catches up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from localllm.inference.engine.sequence import Sequence

# Copying a prefix to another slot moves that slot's whole buffer, so a few tokens are computed anew.
MIN_TOKENS_TO_COPY = 16
MIN_SLICE = 32  # tokens of a prompt that are worth a place in a batch


@dataclass(frozen=True, slots=True)
class Slice:
    """The next `count` uncomputed tokens of one sequence."""

    seq: Sequence
    count: int

    @property
    def slot(self) -> int:
        return self.seq.slot or 0

    @property
    def samples(self) -> bool:
        """Does it reach the end of the sequence, so that a token can be sampled?"""
        return self.count == self.seq.num_pending


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence enters a slot and finds `num_reused` of its tokens in the cache of `source`.

    What another conversation has in the slot is copied to `refuge` first.
    """

    seq: Sequence
    slot: int
    source: int
    num_reused: int
    refuge: int | None = None


@dataclass(slots=True)
class Slot:
    """One llama.cpp sequence and what its KV cache holds."""

    index: int
    seq: Sequence | None = None
    cached: list[int] = field(default_factory=list)
    owner: str = ""
    num_shared: int = 0
    last_used: int = 0

    def num_reusable(self, seq: Sequence) -> int:
        """Leading tokens of `seq` that this slot has computed and `seq` may use."""
        held = self.cached if self.seq is None else self.seq.tokens[: self.seq.num_computed]
        count = common_prefix_len(held, seq.tokens)
        if self.owner != seq.owner:
            count = min(count, self.num_shared, seq.num_shared)
        # At least one token has to be computed, or there would be no logits to sample.
        return min(count, len(seq.tokens) - 1)

    @property
    def is_worth_keeping(self) -> bool:
        return len(self.cached) >= MIN_TOKENS_TO_COPY

    def hold(self, other: Slot) -> None:
        self.cached, self.owner, self.num_shared = other.cached, other.owner, other.num_shared
        self.last_used = other.last_used

    def hold_nothing(self) -> None:
        self.cached, self.last_used = [], 0


class Scheduler:
    def __init__(self, num_slots: int, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.slots = [Slot(index) for index in range(num_slots)]
        self.waiting: list[Sequence] = []
        self._clock = 0

    @property
    def running(self) -> list[Sequence]:
        return [slot.seq for slot in self.slots if slot.seq is not None]

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def line(self) -> list[Sequence]:
        """The waiting sequences in the order in which they will be served.

        Fair between owners: everybody's first request goes before anybody's second, counting those
        that are running already; within a round, first come, first served.
        """
        rounds: Counter[str] = Counter(seq.owner for seq in self.running)
        ranked = []
        for arrival, seq in enumerate(self.waiting):
            ranked.append((rounds[seq.owner], arrival, seq))
            rounds[seq.owner] += 1
        return [seq for _, _, seq in sorted(ranked, key=lambda entry: entry[:2])]

    def admit(self) -> Iterator[Admission]:
        """Move waiting sequences into free slots, one at a time."""
        while self.waiting and any(slot.seq is None for slot in self.slots):
            seq = self.line()[0]
            self.waiting.remove(seq)
            yield self._place(seq)

    def _place(self, seq: Sequence) -> Admission:
        """Choose the slot: the conversation's own if it is free, else the one unused for longest.

        Or one beside running slots, because llama.cpp computes neighbours together and others one after the other.
        """
        reusable = {slot.index: slot.num_reusable(seq) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (reusable[slot.index], slot.seq is None))
        home = min(self._free, key=lambda slot: slot.last_used)
        if source.seq is None and 2 * reusable[source.index] >= len(source.cached):
            home = source  # taking it over loses less of another conversation than it saves
        num_reused = reusable[source.index]
        slot, refuge = self._beside_running(home, is_needed=home is source and num_reused >= MIN_TOKENS_TO_COPY)
        if slot is not source and num_reused < MIN_TOKENS_TO_COPY:
            source, num_reused = slot, reusable[slot.index]
        if refuge is not None:
            refuge.hold(slot)
        if source is home and slot is not home:
            home.hold_nothing()
        slot.seq, slot.owner, slot.num_shared = seq, seq.owner, seq.num_shared
        slot.cached = []
        seq.slot = slot.index
        return Admission(seq, slot.index, source.index, num_reused, refuge.index if refuge else None)

    @property
    def _free(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.seq is None]

    def _beside_running(self, home: Slot, *, is_needed: bool) -> tuple[Slot, Slot | None]:
        """A free slot with a running neighbour, and the one to which its contents go, if they are worth keeping.

        That is `home`, whose own contents are given up, or an empty one if those of `home` are needed. Without one it
        stays `home`: no conversation loses its cache to bring others together.
        """
        if not self.running or self._num_neighbours(home):
            return home, None
        beside = [slot for slot in self._free if self._num_neighbours(slot)]
        slot = max(beside, key=lambda slot: (not slot.is_worth_keeping, self._num_neighbours(slot), -slot.last_used))
        if not slot.is_worth_keeping:
            return slot, None
        empty = (free for free in self._free if free is not home and not free.is_worth_keeping)
        refuge = next(empty, None) if is_needed else home
        return (slot, refuge) if refuge else (home, None)

    def _num_neighbours(self, slot: Slot) -> int:
        return sum(other.seq is not None for other in self.slots[max(0, slot.index - 1) : slot.index + 2])

    def schedule(self, max_prefill_tokens: int | None = None) -> list[Slice]:
        """The next batch, by slot. `max_prefill_tokens` bounds what new prompts add while others decode.

        Sequences that are one token behind go first, so a long prompt never stalls running answers. What is left
        of a prompt is not cut in two: beside nine answers 61 tokens took 385 ms, 35 and 26 of them 354 and 316 ms.
        """
        room = self.max_batch_tokens
        running = sorted(self.running, key=lambda seq: seq.num_pending)
        is_mixed = any(seq.is_decoding for seq in running)
        budget = max_prefill_tokens if is_mixed and max_prefill_tokens is not None else room
        slices: list[Slice] = []
        for seq in running:
            if seq.is_decoding:
                count = min(seq.num_pending, room)
            else:
                count = min(_uncut(seq.num_pending, budget), room)
                budget -= count
            if count > 0:
                slices.append(Slice(seq, count))
                room -= count
        return sorted(slices, key=lambda piece: piece.slot)

    def advance(self, piece: Slice, tokens: list[int]) -> None:
        """The slice is computed; `tokens` were chosen to follow it."""
        piece.seq.num_computed += piece.count
        piece.seq.tokens += tokens

    def finish(self, seq: Sequence) -> None:
        """Take the sequence out. Its slot keeps what was computed, for the next turn."""
        if seq.slot is None:
            self.waiting.remove(seq)
            return
        slot = self.slots[seq.slot]
        slot.seq = None
        slot.cached = seq.tokens[: seq.num_computed]
        self._clock += 1
        slot.last_used = self._clock

    def slot_that_holds(self, answered: Sequence) -> Slot | None:
        """The free slot with all that was computed of a finished sequence, which may have moved."""
        held = answered.tokens[: answered.num_computed]
        return next((slot for slot in self._free if slot.owner == answered.owner and slot.cached == held), None)

    def forget(self) -> None:
        """The KV cache was lost: no free slot holds anything any more."""
        for slot in self.slots:
            slot.cached = []


def _uncut(num_pending: int, budget: int) -> int:
    """How much of a prompt to compute: `budget`, or all of it up to twice that; never a few tokens of a long one."""
    if num_pending <= 2 * budget:
        return num_pending
    return budget if budget >= MIN_SLICE else 0


def common_prefix_len(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])
