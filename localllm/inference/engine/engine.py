"""Token ids in, events out, many requests at a time: schedule -> run -> advance -> finish.

One thread owns the runner and the scheduler. Others talk to it through an inbox; it answers by calling
`Sequence.emit`. It knows nothing of processes, sockets or templates.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable

from localllm.inference.engine import ahead, self_test
from localllm.inference.engine.runner import Runner, Sample
from localllm.inference.engine.scheduler import Scheduler, Slice, common_prefix_len
from localllm.inference.engine.sequence import Sequence
from localllm.inference.engine.spinning import Spinning
from localllm.inference.errors import ConstraintError, ProviderError, QueueFull
from localllm.inference.types import Chunk, FinishReason, Prefill, SamplingParams, Speed, Started, Waiting

# While answers are streaming, new prompts get so much of each step that it takes about this long; longer when
# more wait for their first token than read.
MIXED_STEP_S, LONGEST_MIXED_STEP_S = 0.25, 2.0
MIN_PREFILL_TOKENS = 32
GATHER_S = 0.02  # an idle engine waits so long for requests that have come with the first: one batch reads them quicker


class Engine:
    def __init__(
        self,
        runner: Runner,
        *,
        max_batch_tokens: int,
        max_waiting: int,
        flush: Callable[[float], None] = lambda step_s: None,
        is_more_coming: Callable[[], bool] = lambda: False,
    ) -> None:
        """`flush` is called before and after each step, with the seconds until it will be called again.

        `is_more_coming` says whether a request is here that is not submitted yet.
        """
        self.num_steps = 0
        self.step_started_at: float | None = None  # monotonic; None between steps
        self._runner = runner
        self._flush = flush
        self._is_more_coming = is_more_coming
        self._max_waiting = max_waiting
        self._scheduler = Scheduler(runner.num_slots, max_batch_tokens)
        self._inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._service_s: deque[float] = deque(maxlen=16)  # how long the last requests held a slot
        self._prefill_rate = 0.0  # tokens per second, of the last large prefill
        self._is_copying = False  # llama.cpp copies slots at the beginning of the next step
        self._decode_s = math.inf  # the last step that read no prompt
        self._spinning = Spinning(runner.num_threads)
        self._answered: deque[Sequence] = deque(maxlen=runner.num_slots)  # whose next turn is not prepared yet
        self._tell_speed: Callable[[Speed], None] | None = None  # a self-test is due

    # Called from any thread

    def submit(self, seq: Sequence) -> None:
        self._inbox.put(seq)

    def cancel(self, seq: Sequence) -> None:
        """Free its slot before the next batch is computed."""
        seq.cancelled = True
        self._inbox.put(None)

    def measure(self, tell: Callable[[Speed], None]) -> None:
        """Test yourself as soon as there has been nothing else to do for a while."""
        self._tell_speed = tell
        self._inbox.put(None)

    # Everything below runs in the engine thread

    def run_forever(self) -> None:
        while True:
            self._receive()
            if self._scheduler.is_idle:
                self.use_idle_time()
            self.step()
            self._flush(self._decode_s)
            self._spinning.observe()

    def run_until_idle(self) -> None:
        """Compute until nobody waits or runs; for whoever owns the thread."""
        self._receive()
        while not self._scheduler.is_idle:
            self.step()

    def warm_up(self) -> None:
        """Compute one token, so that the first user does not wait for pages and buffers."""
        nobody = Sequence([0, 0], SamplingParams(), 0, 1, emit=lambda event: None, slot=0)
        self._runner.run([Slice(nobody, 1)])
        self._runner.clear()

    def use_idle_time(self) -> None:
        """Do one of the things that are done while nobody asks for anything."""
        if self._answered:
            self._prepare_next_turn(self._answered.popleft())
        elif self._tell_speed:
            self._test(self._tell_speed)

    def _prepare_next_turn(self, answered: Sequence) -> None:
        """Compute ahead in the slot of a conversation, if it is still there and its next prompt goes on from it."""
        assert answered.next_prompt is not None
        slot = self._scheduler.slot_that_holds(answered)
        if not self._runner.can_cut or slot is None:
            return
        try:
            tokens = answered.next_prompt()
            num_known = common_prefix_len(slot.cached, tokens)
            if 2 * num_known < answered.num_prompt_tokens or len(tokens) >= self._runner.window:
                return
            seq = Sequence(tokens, SamplingParams(), 0, 1, emit=lambda event: None, slot=slot.index)
            seq.num_computed = self._runner.reuse(slot.index, slot.index, num_known)
            ahead.compute_ahead(self._runner, self._run, seq, is_wanted=lambda: not self._inbox.empty())
            slot.cached = tokens[: seq.num_computed]
        except ProviderError as exc:
            self._fail_running(exc)
        self.step_started_at = None

    def _test(self, tell: Callable[[Speed], None]) -> None:
        """Whoever asks for something meanwhile goes first; then it is done anew."""
        slot = min(self._scheduler.slots, key=lambda slot: slot.last_used)
        slot.cached = []
        speed = self_test.self_test(
            self._runner,
            self._run,
            slot=slot.index,
            num_tokens=self._scheduler.max_batch_tokens,
            is_wanted=lambda: not self._inbox.empty(),
        )
        self.step_started_at = None
        self._runner.reuse(slot.index, slot.index, 0)
        if speed is not None:
            self._tell_speed = None
            tell(speed)

    def _receive(self) -> None:
        """Take in what has arrived; sleep only when there is nothing to compute."""
        gather_until = 0.0
        while True:
            is_idle = self._scheduler.is_idle
            wait_s = self._quiet_s() if is_idle else self._gather_s(gather_until)
            try:
                seq = self._inbox.get(block=wait_s != 0, timeout=wait_s)
            except queue.Empty:
                return
            if is_idle:
                self._spinning.rest()
                gather_until = time.monotonic() + GATHER_S
            if seq is not None:
                self._accept(seq)

    def _gather_s(self, until: float) -> float:
        return max(0.0, until - time.monotonic()) if self._is_more_coming() else 0.0

    def _quiet_s(self) -> float | None:
        """How long to sleep before the idle time is used."""
        if self._answered:
            return ahead.QUIET_S
        return self_test.QUIET_S if self._tell_speed else None

    def _accept(self, seq: Sequence) -> None:
        num_waiting = len(self._scheduler.waiting)
        if num_waiting >= self._max_waiting and not seq.was_accepted:
            wait_s = self._wait_s(num_waiting) or 10.0
            seq.emit(
                QueueFull(
                    f"The queue of this model is full, with {num_waiting} waiting of at most {self._max_waiting}. "
                    f"Try again in {math.ceil(wait_s)} s.",
                    retry_after_s=wait_s,
                )
            )
        else:
            self._scheduler.add(seq)

    def step(self) -> None:
        self._drop_cancelled()
        self._admit()
        slices = self._scheduler.schedule(self._max_prefill_tokens())
        # Places in the line are told before the batch is computed; and no token waits while a prompt is read.
        self._flush(self._decode_s if _only_decodes(slices) else math.inf)
        if not slices:
            return
        try:
            samples = self._run(slices)
        except ProviderError as exc:
            self._fail_running(exc)
            return
        for piece, sample in zip(slices, samples, strict=True):
            self._scheduler.advance(piece, sample.tokens if sample else [])
            self._tell(piece.seq, sample)

    def _drop_cancelled(self) -> None:
        for seq in [*self._scheduler.running, *self._scheduler.waiting]:
            if seq.cancelled:
                self._finish(seq, "cancelled")

    def _admit(self) -> None:
        if not self._scheduler.waiting:
            return
        for admission in self._scheduler.admit():
            seq = admission.seq
            if admission.refuge is not None:
                self._runner.copy(admission.slot, admission.refuge)
            self._is_copying |= admission.refuge is not None or admission.slot != admission.source
            seq.num_computed = self._runner.reuse(admission.slot, admission.source, admission.num_reused)
            seq.num_reused = seq.num_computed
            seq.started_at = time.monotonic()
            seq.emit(Started(tuple(seq.tokens), seq.num_reused))
            self._begin(seq)
        for place, seq in enumerate(self._scheduler.line(), start=1):
            if place != seq.place:
                seq.place = place
                seq.emit(Waiting(place, self._wait_s(place)))

    def _begin(self, seq: Sequence) -> None:
        """What a constraint forces at the beginning is told before anything is computed."""
        try:
            forced = seq.constraint.start() if seq.constraint else []
        except ConstraintError as exc:  # it was continued where no room is left for an ending
            self._release(seq)
            seq.emit(exc)
            return
        seq.tokens += forced
        seq.sampler = self._runner.sampler(seq.params, seq.seed, seq.tokens)
        if seq.constraint and (forced or seq.constraint.is_done):
            is_asked = seq.params.num_logprobs is not None
            self._say(seq, Sample(forced, self._runner.certain(forced) if is_asked else ()))

    def _wait_s(self, place: int) -> float | None:
        if not self._service_s:
            return None
        return place * sum(self._service_s) / len(self._service_s) / self._runner.num_slots

    def _max_prefill_tokens(self) -> int | None:
        if not self._prefill_rate:
            return None
        running = self._scheduler.running
        num_reading = max(1, sum(seq.is_decoding for seq in running))
        step_s = MIXED_STEP_S * max(1, len(running) / num_reading - 1)
        return max(MIN_PREFILL_TOKENS, int(self._prefill_rate * min(step_s, LONGEST_MIXED_STEP_S)))

    def _run(self, slices: list[Slice]) -> list[Sample | None]:
        self.num_steps += 1
        self.step_started_at = started = time.monotonic()
        samples = self._runner.run(slices)
        self.step_started_at = None
        num_tokens, elapsed_s = sum(piece.count for piece in slices), time.monotonic() - started
        if num_tokens >= MIN_PREFILL_TOKENS and not self._is_copying:
            self._prefill_rate = num_tokens / elapsed_s
        if _only_decodes(slices):
            self._decode_s = elapsed_s
        self._is_copying = False
        return samples

    def _tell(self, seq: Sequence, sample: Sample | None) -> None:
        """Send what the reader should know after this step, and finish the sequence if it is done."""
        if sample is None:
            seq.emit(Prefill(seq.num_computed, seq.num_prompt_tokens))
            return
        if sample.error is not None:
            self._release(seq)
            seq.emit(sample.error)
            return
        self._say(seq, sample)

    def _say(self, seq: Sequence, sample: Sample) -> None:
        seq.first_token_at = seq.first_token_at or time.monotonic()
        # The token that ends the turn belongs to the record, not to the answer.
        is_end = bool(sample.tokens) and self._ends(seq, sample.tokens[-1])
        num_shown = len(sample.tokens) - is_end
        pieces = [self._runner.piece(token) for token in sample.tokens[:num_shown]]
        seq.emit(seq.shown(sample.tokens, pieces, sample.logprobs))
        if reason := self._reason_to_finish(seq, is_end):
            self._finish(seq, reason)

    def _ends(self, seq: Sequence, token: int) -> bool:
        return token in seq.constraint.vocabulary.end_ids if seq.constraint else self._runner.is_end(token)

    def _reason_to_finish(self, seq: Sequence, is_end: bool) -> FinishReason | None:
        if seq.constraint and seq.constraint.is_done:
            return "closed" if seq.constraint.is_closed else "stop"
        if is_end or seq.detokenizer.is_stopped:
            return "stop"
        return "length" if seq.num_generated >= seq.max_tokens else None

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        self._release(seq)
        reasoning, text = seq.detokenizer.flush()
        if reasoning or text or seq.held_logprobs:
            seq.emit(Chunk(text, logprobs=tuple(seq.held_logprobs), reasoning=reasoning))
        seq.emit(seq.finished(reason, self._runner.window))
        if seq.next_prompt and reason != "cancelled":
            self._answered.append(seq)

    def _release(self, seq: Sequence) -> None:
        self._scheduler.finish(seq)
        if seq.sampler is not None:
            self._runner.free_sampler(seq.sampler)
            seq.sampler = None
        if seq.started_at is not None:
            self._service_s.append(time.monotonic() - seq.started_at)

    def _fail_running(self, exc: ProviderError) -> None:
        """A batch could not be computed: its sequences fail, the engine goes on with a clean cache."""
        self.step_started_at = None
        for seq in self._scheduler.running:
            self._release(seq)
            seq.emit(exc)
        self._runner.clear()
        self._scheduler.forget()


def _only_decodes(slices: list[Slice]) -> bool:
    return all(piece.count == 1 for piece in slices)
