"""Jobs on a real database: claimed once, paused and resumed, and never lost with the process that ran them."""

import asyncio

import pytest
from django.contrib.auth.models import User

from localllm.gateway import database
from localllm.gateway.jobs import JobRunner
from localllm.gateway.models import Job
from localllm.inference.errors import InferenceError

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio]

NEVER = 3600.0


class Counting:
    """A kind that counts to the job's total, a step each time it is let, and commits each step."""

    def __init__(self):
        self.steps = asyncio.Semaphore(0)
        self.begun = []
        self.ended = asyncio.Event()

    def let(self, steps):
        for _ in range(steps):
            self.steps.release()

    async def __call__(self, job):
        self.begun.append(job.title)
        try:
            for _ in range(job.num_left):
                await self.steps.acquire()
                await database.write(job.count, done=1)
        finally:
            self.ended.set()


async def refuse(job):
    raise InferenceError("There is no more paper. Buy some.")


async def stumble(job):
    raise KeyError("a mistake of ours")


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
async def start(counting):
    """Start a runner, as a process does; all are drained at the end."""
    runners = []

    async def start(look_every_s=NEVER):
        runners.append(JobRunner(look_every_s))
        await runners[-1].start({"counting": counting, "refusing": refuse, "stumbling": stumble})
        return runners[-1]

    yield start
    for runner in runners:
        await runner.drain(5)


async def make(title="count", owner="alice", **fields):
    def create():
        user, _ = User.objects.get_or_create(username=owner)
        return Job.objects.create(**{"kind": "counting", "title": title, "owner": user, "num_total": 3, **fields})

    return await database.write(create)


async def until(job, state, **counts):
    """Wait for what the row is to say."""
    for _ in range(500):
        now = await database.read(Job.objects.get, pk=job.pk)
        if now.state == state and all(getattr(now, name) == value for name, value in counts.items()):
            return now
        await asyncio.sleep(0.01)
    raise AssertionError(f"The job is {now.state} with {now.num_done} done: {now.error}")


async def test_it_runs_a_job_to_its_end(start, counting):
    runner, job = await start(), await make()
    counting.let(3)
    runner.wake()
    done = await until(job, "complete", num_done=3)
    assert done.started_at <= done.finished_at and done.num_left == 0


async def test_it_finds_a_job_that_another_process_made(start, counting):
    await start(look_every_s=0.02)
    job = await make(num_total=0)
    await until(job, "complete")


async def test_it_runs_one_job_of_an_owner_at_a_time_and_those_of_others_beside(start, counting):
    await make("a1")
    second, other = await make("a2"), await make("b1", "bob")
    await start()
    await until(other, "running")
    assert counting.begun == ["a1", "b1"]
    counting.let(9)
    await until(second, "complete")
    assert counting.begun == ["a1", "b1", "a2"]


async def test_it_pauses_and_goes_on_from_there(start, counting):
    job = await make()
    runner = await start()
    counting.let(1)
    await until(job, "running", num_done=1)
    assert await database.write(job.pause)
    runner.wake()
    await counting.ended.wait()
    counting.let(9)
    assert (await until(job, "paused")).num_done == 1
    assert await database.write(job.resume)
    runner.wake()
    await until(job, "complete", num_done=3)


async def test_a_paused_job_stays_paused_over_restarts(start, counting):
    job, other = await make(state="paused"), await make("other", num_total=0)
    await start()
    await until(other, "complete")
    assert (await until(job, "paused")).num_done == 0 and counting.begun == ["other"]


async def test_it_runs_again_what_a_dead_process_was_running(start, counting):
    job = await make(state="running", num_done=2)
    counting.let(1)
    await start()
    await until(job, "complete", num_done=3)


async def test_draining_leaves_a_job_to_the_next_start(start, counting):
    job = await make()
    runner = await start()
    counting.let(1)
    await until(job, "running", num_done=1)
    await runner.drain(5)
    assert (await until(job, "running")).num_done == 1
    counting.let(2)
    await start()
    await until(job, "complete", num_done=3)


async def test_a_cancelled_job_ends_and_is_never_run_again(start, counting):
    job = await make()
    runner = await start()
    await until(job, "running")
    assert await database.write(job.cancel) and not await database.write(job.resume)
    runner.wake()
    await counting.ended.wait()
    assert (await until(job, "cancelled")).num_done == 0


async def test_a_job_that_cannot_go_on_fails_with_the_reason(start):
    job = await make(kind="refusing")
    await start()
    assert (await until(job, "failed")).error == "There is no more paper. Buy some."


async def test_a_mistake_of_ours_fails_the_job_and_not_the_runner(start, counting, caplog):
    job = await make(kind="stumbling")
    runner = await start()
    assert "The log says what" in (await until(job, "failed")).error and "a mistake of ours" in caplog.text
    other = await make(num_total=0)
    runner.wake()
    await until(other, "complete")


async def test_a_job_that_got_more_to_do_is_begun_anew(start, counting):
    job = await make()
    runner = await start()
    counting.let(1)
    await until(job, "running", num_done=1)
    assert await database.write(job.run_again)
    runner.wake()
    await counting.ended.wait()
    counting.let(2)
    await until(job, "complete", num_done=3)
    assert counting.begun == ["count", "count"]


async def test_only_one_of_two_claims_wins():
    job = await make()
    claims = [database.write(Job.objects.claim_next, ["counting"]) for _ in range(2)]
    assert [claimed and claimed.pk for claimed in await asyncio.gather(*claims)] == [job.pk, None]


async def test_a_kind_that_nobody_knows_is_left_alone(start):
    job, other = await make(kind="from a newer version"), await make("other", num_total=0)
    await start()
    await until(other, "complete")
    assert (await until(job, "queued")).error == ""
