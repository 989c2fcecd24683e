"""How llama.cpp's threads wait for each other: by spinning while the CPUs are theirs, else by sleeping.

Spinning at OpenMP's barriers is fastest on a quiet machine. As soon as another program wants the same
CPUs, a spinning thread keeps the one it waits for from running, and decoding becomes ten to a hundred
times slower (docs/benchmarks.md, "neighbours"). libgomp's two counts are fixed when it is loaded, but it
spins by the second one, "throttled", whenever it manages more threads than there are CPUs. So the worker
is started with a throttled count of zero (`ENVIRONMENT`), and a few idle threads more or less switch it.
Source: libgomp's wait.h, do_spin(), and env.c. Without libgomp or the kernel's schedstat it does nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping

from localllm.inference.engine.packing import Packing, queued_s

# Spin as long as libgomp does by default; "passive" makes the throttled count zero.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300000"}

OBSERVE_EVERY_S = 0.25
CROWDED_SHARE = 0.15  # of the time, threads that could run stand in line for a CPU: somebody else has it
NUM_CROWDED = 2  # observations in a row: a short burst is over before sleeping would pay
# Packed threads stand in line for each other, which says nothing. They get all CPUs back as soon as there is room, and
# after this time for one observation, because a neighbour may only fill up what nobody wants.
PACKED_S = 10.0
# While they sleep on all CPUs and seldom stand in line, the neighbour may have gone, or only give way to those
# that wake up: spinning is tried for one observation, and more rarely each time that it fails. So it is where packed
# threads get all CPUs back, because asleep they stay where they are and go on standing in line for each other.
FIRST_TRY_S, LAST_TRY_S = 1.0, 32.0


class Spinning:
    """Call `observe` now and then from the thread that computes; it takes some tenths of a millisecond."""

    def __init__(
        self,
        num_threads: int,
        *,
        queued_s: Callable[[], float] = queued_s,
        packing: Packing | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_crowded = False
        # One thread waits for nobody, and whoever has set OpenMP's variables has chosen how threads wait.
        self._is_at_work = num_threads > 1 and environ.items() >= ENVIRONMENT.items()
        self._num_threads = num_threads
        self._queued_s = queued_s
        self._packing = packing or Packing(num_threads)
        self._clock = clock
        self._crowd = _Crowd()
        self._seen_at: float | None = None  # not since the last rest
        self._seen_s = 0.0
        self._num_crowded = 0
        self._spread_at = 0.0
        self._try_at = 0.0
        self._try_after_s = FIRST_TRY_S

    def observe(self) -> None:
        """Look how long this process's threads stood in line for a CPU, and switch if need be."""
        if not self._is_at_work:
            return
        now = self._clock()
        if self._packing.is_packed:
            if self._seen_at is not None and now - self._seen_at < OBSERVE_EVERY_S:
                return
            self._seen_at = now
            is_roomy = self._packing.is_roomy()
            if now < self._spread_at and not is_roomy:
                return
            self._packing.spread()
            self._seen_at = None
            if is_roomy and now >= self._try_at:
                self._try_to_spin()
        if self._seen_at is None:
            self._seen_at, self._seen_s = now, self._queued_s()
        elapsed_s = now - self._seen_at
        if elapsed_s < OBSERVE_EVERY_S:
            return
        queued_s = self._queued_s()
        share = (queued_s - self._seen_s) / elapsed_s / self._num_threads
        self._seen_at, self._seen_s = now, queued_s
        if self.is_crowded:
            if share > CROWDED_SHARE:
                self._packing.pack()
                self._spread_at = now + PACKED_S
            elif now >= self._try_at:
                self._try_to_spin()
        elif share <= CROWDED_SHARE:
            self._num_crowded, self._try_after_s = 0, FIRST_TRY_S
        else:
            self._num_crowded += 1
            if self._num_crowded >= NUM_CROWDED:
                self._sleep()
                self._try_at = now + self._try_after_s
                self._try_after_s = min(2 * self._try_after_s, LAST_TRY_S)

    def rest(self) -> None:
        """Nothing was computed for a while: what happened meanwhile says nothing, but the neighbour may have gone."""
        self._seen_at = None
        if self._packing.is_packed and self._packing.is_roomy():
            self._packing.spread()
            if self._clock() >= self._try_at:
                self._try_to_spin()

    def _sleep(self) -> None:
        self.is_crowded = True
        self._crowd.gather()

    def _try_to_spin(self) -> None:
        """For one observation: if that is crowded, they sleep again, and longer."""
        self.is_crowded = False
        self._num_crowded = NUM_CROWDED - 1
        self._crowd.disperse()


class _Crowd:
    """Idle OpenMP threads, enough of them that libgomp believes the CPUs are oversubscribed."""

    def __init__(self) -> None:
        try:
            self._gomp: ctypes.CDLL | None = ctypes.CDLL("libgomp.so.1")
        except OSError:
            self._gomp = None
        self._nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) does nothing
        self._may_go: threading.Event | None = None
        self._keeper: threading.Thread | None = None

    def gather(self) -> None:
        if self._gomp is None or self._keeper is not None:
            return
        self._may_go, are_here = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, args=(are_here,), name="crowd", daemon=True)
        self._keeper.start()
        are_here.wait()

    def disperse(self) -> None:
        if self._keeper is not None and self._may_go is not None:
            self._may_go.set()
            self._keeper.join()  # its team of threads ends with it
            self._keeper = None

    def _keep(self, are_here: threading.Event) -> None:
        assert self._gomp is not None and self._may_go is not None
        self._gomp.GOMP_parallel(self._nothing, None, (os.cpu_count() or 1) + 1, 0)
        are_here.set()
        self._may_go.wait()
