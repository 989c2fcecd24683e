"""A version of a template tried on what was asked before, on the real engine."""

import pytest
import pytest_asyncio
from django.contrib.auth.models import Permission, User

from localllm.gateway import completions, database, providers, trials
from localllm.gateway.models import Experiment, LanguageModel, PromptTemplate, Trial, TrialAnswer, UsageLog
from localllm.gateway.models.prompt_template import PromptTemplateError
from localllm.inference.types import ChatRequest, Message, SamplingParams
from tests.inference.engine_on_starter import STARTER, SYSTEM

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(autouse=True)
def model(transactional_db):
    return LanguageModel.objects.register(STARTER, name="starter", make_default=True)


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="module")
async def engines_end():
    yield
    await providers.local.aclose()


def make(text="{{ system_prompt }}", use_case="chat"):
    template = PromptTemplate.objects.create(name="tried", use_case=use_case)
    template.make_current(template.add_version(text))
    return template


async def ask(template, user, *questions, variables=None):
    """Ask with the current version, as chats do."""
    variables = variables or {"system_prompt": SYSTEM}
    for question in questions:
        system = template.current.render(variables)
        messages = tuple(Message(*each) for each in (("system", system), ("user", question)) if each[1])
        request = ChatRequest(messages=messages, params=SamplingParams(temperature=0.0, seed=1, max_tokens=20))
        asker = completions.Asker(
            source="chat", user=user, template_version_id=template.current.pk, template_variables=variables
        )
        model = await database.read(LanguageModel.objects.default)
        async for _ in completions.stream(request, model, asker):
            pass


async def run(user, version, number=10):
    trial = await database.write(Trial.objects.begin, user, version, number)
    await database.write(trial.job.begin)
    await trials.run(trial.job)
    return trial, await database.read(list, trial.answers.all())


def user(name="ada", **fields):
    return User.objects.create_user(name, **fields)


async def test_the_same_text_gives_the_same_answers_and_another_one_others():
    ada, template = await database.write(user), await database.write(make)
    await ask(template, ada, "Who are you?", "What can you do?")
    same = await database.write(template.add_version, "{{ system_prompt }}")
    _, answers = await run(ada, same)
    assert [answer.question for answer in answers] == ["What can you do?", "Who are you?"]
    assert all(answer.after == answer.before != "" for answer in answers)
    other = await database.write(template.add_version, "Count: 1 2 3 4 5 6.")
    trial, answers = await run(ada, other)
    assert any(answer.after != answer.before for answer in answers)
    job = await database.read(lambda: type(trial.job).objects.get(pk=trial.pk))
    assert (job.num_done, job.num_failed) == (2, 0)


async def test_a_version_that_needs_what_was_never_given_fails_in_words():
    ada, template = await database.write(user), await database.write(make)
    await ask(template, ada, "Who are you?")
    version = await database.write(template.add_version, "{{ mood }}")
    _, answers = await run(ada, version)
    assert answers[0].status == "failed" and "No value was given for “mood”" in answers[0].error


async def test_an_empty_prompt_gets_a_system_message_and_may_lose_it_again():
    ada, template = await database.write(user), await database.write(make)
    await ask(template, ada, "Who are you?", variables={"system_prompt": ""})
    version = await database.write(template.add_version, "Be brief.")
    _, answers = await run(ada, version)
    last = await database.read(UsageLog.objects.filter(source="trial").get)
    assert last.dialogue[0] == Message("system", "Be brief.") and answers[0].status == "done"


async def test_only_what_one_may_see_is_tried_and_no_trial_is_tried_again():
    ada, bob, template = await database.write(user), await database.write(user, "bob"), await database.write(make)
    await ask(template, ada, "Who are you?")
    with pytest.raises(PromptTemplateError, match="Nothing that you may see"):
        await database.write(Trial.objects.begin, bob, template.current, 10)
    permission = await database.read(Permission.objects.get, codename="view_usagelog")
    await database.write(bob.user_permissions.add, permission)
    bob = await database.read(User.objects.get, pk=bob.pk)
    for _ in range(2):
        _, answers = await run(bob, template.current)
        assert len(answers) == 1


async def test_a_trial_that_is_cancelled_goes_on_where_it_was():
    ada, template = await database.write(user), await database.write(make)
    await ask(template, ada, "Who are you?", "What can you do?")
    trial = await database.write(Trial.objects.begin, ada, template.current, 10)
    first = await database.read(trial.next_waiting)
    await database.write(TrialAnswer.objects.filter(pk=first.pk).update, status="done", after="kept")
    await database.write(trial.job.begin)
    await trials.run(trial.job)
    assert await database.read(list, trial.answers.values_list("status", flat=True)) == ["done", "done"]
    assert (await database.read(TrialAnswer.objects.get, pk=first.pk)).after == "kept"


async def test_trials_are_no_observations_of_an_experiment():
    ada, template = await database.write(user), await database.write(make)
    await ask(template, ada, "Who are you?")
    other = await database.write(template.add_version, "Be brief.")
    experiment = await database.write(Experiment.objects.start, template, "tokens", {template.current: 50, other: 50})
    await run(ada, other)
    outcomes = await database.read(experiment.outcomes)
    assert [outcome.sample.count for outcome in outcomes] == [0, 0]
