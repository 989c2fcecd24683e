"""Rows, files and workers kept together, on the real engine: hot swap, pre-load, replaced files, measurements."""

import asyncio
import os
import shutil
import signal
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

import pytest
import pytest_asyncio
from django.db import OperationalError

from localllm.gateway import completions, database, providers, serving
from localllm.gateway.models import LanguageModel, UsageLog
from localllm.gateway.models.language_model import ModelError
from localllm.inference.engine.gguf import read_header
from localllm.inference.errors import ModelRefused, ProviderError
from localllm.inference.memory import account
from localllm.inference.types import ChatRequest, Chunk, Finished, Message, SamplingParams
from tests.inference.engine_on_starter import STARTER
from tests.inference.test_probe import changed

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="module")]

NUM_CHATS = 4
LONG = SamplingParams(temperature=99.0, top_p=1.0, min_p=0.0, top_k=0, max_tokens=150, seed=1)
SHORT = SamplingParams(max_tokens=4)


@pytest.fixture(autouse=True)
def models(transactional_db, tmp_path):
    """Two models whose files differ; the first is the default."""
    first = Path(shutil.copy(STARTER, tmp_path / "first.gguf"))
    second = changed(tmp_path / "second.gguf", b"LocalLLM Starter", b"LocalLLM Another")
    return [LanguageModel.objects.register(path, n_ctx=1024) for path in (first, second)]


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def engines_end():
    yield
    await serving.drain(10)
    serving._refused.clear()
    await providers.local.aclose()


async def ask(model, params=SHORT):
    request = ChatRequest(messages=(Message("user", "Tell me all."),), params=params)
    async with aclosing(completions.stream(request, model, completions.Asker(source="api"))) as events:
        return [event async for event in events]


async def default():
    return await database.read(LanguageModel.objects.default)


async def fresh(model):
    return await database.read(LanguageModel.objects.get, pk=model.pk)


async def loaded(model):
    """Its row."""
    await serving.load(model)
    await until(lambda: serving.state(model).state == "ready")
    return await fresh(model)


async def until(is_so):
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.01)


class Chats:
    """Four answers of one model, which stand still until the block ends; all must be complete then."""

    def __init__(self, model):
        self.model = model

    async def __aenter__(self):
        self.answers = [asyncio.create_task(ask(self.model, LONG)) for _ in range(NUM_CHATS)]
        await until(lambda: serving.state(self.model).num_requests == NUM_CHATS and serving.state(self.model).pid)
        await until(lambda: serving.state(self.model).state == "ready")
        self.pid = serving.state(self.model).pid
        os.kill(self.pid, signal.SIGSTOP)
        return self

    async def __aexit__(self, *error):
        os.kill(self.pid, signal.SIGCONT)
        for events in await asyncio.gather(*self.answers):
            assert isinstance(events[-1], Finished) and any(isinstance(event, Chunk) for event in events)


# Hot swap


async def test_another_default_answers_while_four_chats_end_on_the_old_one(models):
    old, new = models
    async with Chats(old):
        await serving.make_default(new)
        assert await default() == new and serving.state(new).state == "ready"
        assert serving.state(old).state == "ending"
        assert isinstance((await ask(await default()))[-1], Finished)
    await until(lambda: serving.state(old).state == "stopped")
    hashes = await database.read(lambda: list(UsageLog.objects.values_list("model_sha256", "error")))
    assert sorted(hashes) == sorted([(old.sha256, "")] * NUM_CHATS + [(new.sha256, "")])


async def test_where_both_have_no_room_new_requests_wait_and_none_fails(models, monkeypatch):
    old, new = models
    one = account(read_header(STARTER), old.engine_settings, serving.machine()).used_bytes
    monkeypatch.setattr(providers.local, "budget_bytes", int(1.5 * one))
    async with Chats(old):
        await serving.make_default(new)
        asked = asyncio.create_task(ask(await default()))
        await until(lambda: serving.state(new).state == "waiting")
    assert isinstance((await asked)[-1], Finished) and serving.state(old).state == "stopped"


async def test_another_file_of_a_model_answers_while_four_chats_end_on_the_old_one(models):
    model, other = models
    await database.write(other.delete)
    old = model.local()
    async with Chats(model):
        row = await fresh(model)
        row.path = other.path
        await database.write(row.remember_file)
        await serving.change(row)
        assert isinstance((await ask(await fresh(model)))[-1], Finished)
        assert providers.local.state(old).state == "ending" and serving.state(row).state == "ready"
    await until(lambda: providers.local.state(old).state == "stopped")


async def test_a_model_with_a_new_name_is_unloaded_by_it(models):
    row = await loaded(models[0])
    row.name = "renamed"
    await serving.change(row)
    await serving.unload(await fresh(row))
    await until(lambda: serving.state(row).state == "stopped")


async def test_a_model_with_a_new_name_and_other_settings_leaves_no_worker_behind(models):
    row = await loaded(models[0])
    row.name, row.n_ctx = "renamed", 512
    await serving.change(row)
    await until(lambda: serving.state(row).state == "ready" and serving.state(models[0]).state == "stopped")


async def test_other_settings_leave_alone_what_somebody_else_changed_meanwhile(models):
    old, new = models
    row = await fresh(old)
    row.n_ctx = 512
    await database.write(new.make_default)
    await serving.change(row)
    assert await default() == new and (await fresh(old)).n_ctx == 512


async def test_a_model_that_was_deleted_while_its_settings_were_changed_does_not_come_back(models):
    _, model = models
    row = await loaded(model)
    row.n_ctx = 512
    changing = asyncio.create_task(serving.change(row))
    await until(lambda: serving.state(row).state == "loading")
    await database.write(LanguageModel.objects.filter(pk=model.pk).delete)
    with pytest.raises(ModelError, match="was deleted meanwhile"):
        await changing
    assert not await database.read(LanguageModel.objects.filter(pk=model.pk).exists)
    await until(lambda: serving.state(model).state == serving.state(row).state == "stopped")


async def test_a_default_that_does_not_load_changes_nothing(models):
    old, new = models
    await database.write(LanguageModel.objects.filter(pk=new.pk).update, path="/nowhere/at-all.gguf")
    with pytest.raises(ProviderError, match="is gone"):
        await serving.make_default(await fresh(new))
    assert await default() == old


async def test_a_model_is_deleted_after_its_last_reply(models):
    _, model = models
    async with Chats(model):
        await serving.delete(await fresh(model))
    await until(lambda: serving.state(model).state == "stopped")
    assert await database.read(UsageLog.objects.filter(model=None, model_name=model.name, error="").count) == NUM_CHATS


# At start


async def test_the_default_and_what_should_be_there_are_loaded_at_start(models):
    await database.write(LanguageModel.objects.filter(pk=models[1].pk).update, is_preloaded=True)
    await serving.start(lambda line: None)
    await until(lambda: [serving.state(model).state for model in models] == ["ready", "ready"])


# Measurements


async def test_the_first_load_of_a_file_is_measured_and_the_next_is_not(models):
    await serving.load(models[0])
    row = models[0]
    while not row.is_measured:
        await asyncio.sleep(0.05)
        row = await fresh(row)
    assert row.predicted_bytes == pytest.approx(row.measured_bytes, rel=0.1)
    assert min(row.load_s, row.prefill_per_s, row.decode_per_s) > 0 and row.measured_at
    row.n_ctx = 512
    assert not row.is_measured


async def test_measuring_can_be_asked_for(models):
    found = await serving.measure(models[0])
    row = await fresh(models[0])
    assert asdict(found) == {name: getattr(row, name) for name in asdict(found)}


# Files that were replaced


async def test_a_replaced_file_is_tried_and_hashed_before_it_is_loaded(models):
    model, other = models
    os.replace(other.path, model.path)
    await ask(model)
    assert (await fresh(model)).sha256 == other.sha256
    assert await database.read(UsageLog.objects.filter(model_sha256=other.sha256).exists)


async def test_a_replaced_file_that_does_not_pass_is_refused_with_the_reason(models):
    Path(models[0].path).write_bytes(STARTER.read_bytes()[:100_000])
    with pytest.raises(ProviderError, match=r"was replaced.*first\.gguf cannot be used"):
        await ask(models[0])
    assert (await fresh(models[0])).sha256 == models[0].sha256


async def test_a_loaded_model_goes_on_when_its_file_is_replaced_by_a_bad_one(models, monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "LOOK_EVERY_S", 0.05)
    await serving.start(lambda line: None)
    await ask(models[0])
    bad = tmp_path / "bad"
    bad.write_bytes(STARTER.read_bytes()[:100_000])
    os.replace(bad, models[0].path)
    await until(lambda: models[0].pk in serving._refused)
    assert isinstance((await ask(await fresh(models[0])))[-1], Finished)


async def test_a_loaded_model_is_replaced_by_a_good_file(models, monkeypatch):
    monkeypatch.setattr(serving, "LOOK_EVERY_S", 0.05)
    await serving.start(lambda line: None)
    model, other = models
    await ask(model)
    os.replace(other.path, model.path)
    await until(lambda: providers.local.state(model.local()).state == "stopped")
    row = await fresh(model)
    assert row.sha256 == other.sha256 and serving.state(row).is_loaded


async def test_files_are_watched_after_a_fault_of_the_database_too(models, monkeypatch):
    monkeypatch.setattr(serving, "LOOK_EVERY_S", 0.05)
    looks = []

    def look():
        looks.append(1)
        raise OperationalError("disk I/O error")

    monkeypatch.setattr(serving, "_with_changed_files", look)
    await serving.start(lambda line: None)
    await until(lambda: len(looks) > 1)


async def test_a_check_reads_the_whole_file(models):
    model = models[0]
    model.check_file()
    stat = Path(model.path).stat()
    with Path(model.path).open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\0" * 8)
    os.utime(model.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not model.has_changed_file
    with pytest.raises(ModelRefused, match="its SHA-256 differs"):
        model.check_file()
    Path(model.path).unlink()
    with pytest.raises(ModelRefused, match="cannot be read: No such file"):
        model.check_file()
