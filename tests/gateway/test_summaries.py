"""Summaries through the one door: the shipped templates, and a row in the usage log for each generation."""

from contextlib import aclosing

import pytest
import pytest_asyncio

from localllm.gateway import completions, database, providers, summaries
from localllm.gateway.models import PromptTemplate, PromptTemplateVersion, UsageLog
from localllm.gateway.models.prompt_template import install_shipped
from localllm.inference.errors import ProviderError
from localllm.inference.summarise import Progress
from localllm.inference.types import Finished, Message
from tests.chat.test_live import register

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="module")]

TEXT = "On Monday the council met in Uppsala and granted the school 41,500 euros for a new roof. " * 60


@pytest.fixture
def model(transactional_db):
    install_shipped(PromptTemplate.objects, PromptTemplateVersion.objects)
    return register()


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="module")
async def engines_end():
    yield
    await providers.local.aclose()


async def summarise(model, text, **options):
    events = summaries.summarise(text, model, completions.Asker(source="chat"), 48, **options)
    async with aclosing(events):
        return [event async for event in events]


async def test_every_part_and_the_last_answer_are_logged_with_their_template(model):
    events = await summarise(model, TEXT, focus="sums")
    logs = await database.read(lambda: list(UsageLog.objects.select_related("template_version__template")))
    num_parts = max(event.num_parts for event in events if isinstance(event, Progress))
    assert len(logs) > num_parts > 1 and isinstance(events[-1], Finished)
    assert {log.template_version.template.name for log in logs} == {"summarization"}
    assert max(log.completion_tokens for log in logs) <= 48
    for log in logs:  # so that another version can be tried on it
        assert log.template_version.render(log.template_variables) in log.dialogue[-2].content


async def test_passages_are_summarised_together(model):
    events = await summarise(model, ["The mill was built in 1887.", "It closed in 1954."])
    assert isinstance(events[-1], Finished) and not any(isinstance(event, Progress) for event in events)


async def test_a_template_that_was_taken_away_is_named(model):
    await database.write(PromptTemplate.objects.filter(use_case="summarization").update, current=None)
    with pytest.raises(ProviderError, match="summarization"):
        await summarise(model, "The mill was built in 1887.")


async def test_what_a_compression_was_asked_with_is_logged(model):
    turns = [Message("user", "Maya goes to Uppsala on 14 March."), Message("assistant", "She takes the train.")] * 6
    version = await summaries.template("compression", model)
    items = summaries.compress(turns, model, version, completions.Asker(source="chat"), 64)
    async with aclosing(items):
        (*_, made) = [item async for item in items]
    log = await database.read(UsageLog.objects.select_related("template_version").first)
    assert not made.is_quoted and "Uppsala" in log.template_variables["turns"]
    assert version.render(log.template_variables) in log.dialogue[-2].content


async def test_the_starter_is_not_asked_but_counts(model):
    await database.write(type(model).objects.update, is_starter=True)
    await database.read(model.refresh_from_db)
    turns = [Message("user", "Maya goes to Uppsala on 14 March."), Message("assistant", "She takes the train.")] * 6
    version = await summaries.template("compression", model)
    items = summaries.compress(turns, model, version, completions.Asker(source="chat"), 64)
    async with aclosing(items):
        (made,) = [item async for item in items]
    assert made.is_quoted and "14 March" in made.facts.text and not await database.read(UsageLog.objects.exists)
