"""When the worker's threads spin and when they sleep. Time and the kernel's account are scripted."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from localllm.inference.engine.spinning import ENVIRONMENT, PACKED_S, Spinning

ROOT = Path(__file__).parents[2]


class Places:
    """Where the threads were told to run."""

    is_packed = False
    others_are_idle = False

    def pack(self):
        self.is_packed = True

    def is_roomy(self):
        return self.others_are_idle

    def spread(self):
        self.is_packed = False


class Machine:
    """A clock, and how long the process's threads have stood in line for a CPU."""

    def __init__(self, num_threads=2, environ=ENVIRONMENT):
        self.now, self.queued_s, self.places = 0.0, 0.0, Places()
        self.spinning = Spinning(
            num_threads,
            queued_s=lambda: self.queued_s,
            packing=self.places,
            environ=environ,
            clock=lambda: self.now,
        )
        self.spinning.observe()

    def pass_time(self, seconds, share):
        """Let steps of a quarter second pass in which each of two threads waits for that share of it."""
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            self.queued_s += 0.25 * 2 * share
            self.spinning.observe()


def test_it_spins_on_a_quiet_machine():
    machine = Machine()
    machine.pass_time(10, share=0.01)
    assert not machine.spinning.is_crowded


def test_it_sleeps_when_a_neighbour_takes_the_cpus():
    machine = Machine()
    machine.pass_time(0.5, share=0.5)
    assert machine.spinning.is_crowded and not machine.places.is_packed


def test_it_packs_its_threads_when_they_sleep_and_stand_in_line_still():
    machine = Machine()
    machine.pass_time(0.75, share=0.5)
    assert machine.spinning.is_crowded and machine.places.is_packed


def test_a_short_burst_changes_nothing():
    machine = Machine()
    for _ in range(5):
        machine.pass_time(0.25, share=0.5)
        machine.pass_time(0.25, share=0.0)
    assert not machine.spinning.is_crowded


def test_it_spins_again_when_the_neighbour_has_gone():
    machine = Machine()
    machine.pass_time(1, share=0.5)
    machine.places.others_are_idle = True
    machine.pass_time(1, share=0.0)
    assert not machine.spinning.is_crowded and not machine.places.is_packed


def test_packed_threads_spin_as_soon_as_nobody_wants_the_other_cpus():
    """Asleep they would stay where they were and stand in line for each other, which looks like a neighbour."""
    machine = Machine()
    machine.pass_time(2, share=0.5)
    assert machine.places.is_packed
    machine.places.others_are_idle = True
    machine.pass_time(0.25, share=0.5)
    assert not machine.spinning.is_crowded and not machine.places.is_packed
    machine.pass_time(10, share=0.0)
    assert not machine.spinning.is_crowded and not machine.places.is_packed


def test_packed_threads_seldom_try_to_spin_beside_a_neighbour_that_rests_now_and_then():
    machine, tries = Machine(), 0
    machine.places.others_are_idle = True
    for _ in range(4 * 60):
        was_crowded = machine.spinning.is_crowded
        machine.pass_time(0.25, share=0.5)
        tries += was_crowded and not machine.spinning.is_crowded
    assert 3 <= tries <= 6


def test_a_request_after_a_pause_has_all_cpus_when_there_is_room():
    machine = Machine()
    machine.pass_time(2, share=0.5)
    machine.spinning.rest()
    assert machine.places.is_packed
    machine.places.others_are_idle = True
    machine.spinning.rest()
    assert not machine.places.is_packed and not machine.spinning.is_crowded


def test_packed_threads_are_spread_for_one_observation_now_and_then():
    machine, spread_at = Machine(), []
    machine.pass_time(0.75, share=0.5)
    for _ in range(4 * 60):
        machine.pass_time(0.25, share=0.5)
        if not machine.places.is_packed:
            spread_at.append(machine.now)
    assert [b - a for a, b in pairwise(spread_at)] == [PACKED_S + 0.25] * (len(spread_at) - 1)
    assert len(spread_at) == 5


def test_it_sleeps_as_long_as_its_threads_stand_in_line():
    machine, is_crowded = Machine(), set()
    machine.pass_time(0.5, share=0.5)
    for _ in range(4 * 60):
        machine.pass_time(0.25, share=0.35)
        is_crowded.add(machine.spinning.is_crowded)
    assert is_crowded == {True}


def test_it_tries_to_spin_more_and_more_rarely_beside_a_neighbour_that_gives_way_to_sleepers():
    machine, tries = Machine(), []
    for _ in range(4 * 60):
        machine.pass_time(0.25, share=0.05 if machine.spinning.is_crowded else 0.5)
        if not machine.spinning.is_crowded:
            tries.append(machine.now)
    assert 3 <= len(tries) <= 6
    assert [b - a for a, b in pairwise(tries)] == sorted(b - a for a, b in pairwise(tries))


def test_what_happens_while_nothing_is_computed_says_nothing():
    machine = Machine()
    for _ in range(3):
        machine.now, machine.queued_s = machine.now + 100, machine.queued_s + 100
        machine.spinning.rest()
        machine.spinning.observe()
    assert not machine.spinning.is_crowded


def test_one_thread_waits_for_nobody():
    machine = Machine(num_threads=1)
    machine.pass_time(5, share=0.9)
    assert not machine.spinning.is_crowded


def test_openmp_variables_of_the_user_stay_as_they_are():
    machine = Machine(environ={"OMP_WAIT_POLICY": "passive"})
    machine.pass_time(5, share=0.9)
    assert not machine.spinning.is_crowded and not machine.places.is_packed


PLACES = """
import os, subprocess, sys, threading, time
from localllm.inference.engine.packing import Packing
threading.Thread(target=threading.Event().wait, daemon=True).start()
def places():
    return {frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}
before, packing = places(), Packing(num_threads=len(os.sched_getaffinity(0)))
packing.pack()
(packed,) = places()
(all_cpus,) = before
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in all_cpus]
for process, cpu in zip(busy, all_cpus):
    os.sched_setaffinity(process.pid, {cpu})
packing.is_roomy()
time.sleep(0.3)
is_roomy = packing.is_roomy()
for process in busy:
    process.kill()
packing.spread()
print(packed < all_cpus, len(packed) == (len(all_cpus) + 1) // 2, not is_roomy, places() == before)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="There is only one CPU to run on.")
def test_all_threads_are_really_packed_and_spread():
    done = subprocess.run([sys.executable, "-c", PLACES], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4


SWITCH = """
import threading
from localllm.inference.engine.spinning import _Crowd
import os
crowd = _Crowd()
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
crowd.gather()
gathered = count()
crowd.disperse()
for _ in range(100):
    if count() == before: break
    threading.Event().wait(0.02)
print(gathered - before > os.cpu_count(), count() == before)
"""


def test_the_crowd_really_gathers_and_disperses():
    """In a process of its own, with the environment that the worker has."""
    done = subprocess.run(
        [sys.executable, "-c", SWITCH],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True"]
