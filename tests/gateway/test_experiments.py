"""A/B tests of templates: sticky shares, one observation per conversation, a verdict, and its end."""

import uuid
from collections import Counter

import pytest

from localllm.gateway.models import Experiment, Feedback, PromptTemplate, UsageLog
from localllm.gateway.models.experiment import ExperimentError
from localllm.gateway.models.usage import subject

pytestmark = pytest.mark.django_db


@pytest.fixture
def template():
    return PromptTemplate.objects.get(name="chat")


@pytest.fixture
def versions(template):
    return [template.current_version, template.add_version("Be brief. {{ system_prompt }}")]


@pytest.fixture
def experiment(template, versions):
    return Experiment.objects.start(template, "tokens", {versions[0]: 50, versions[1]: 50})


def log(version, conversation=None, **fields):
    values = {"source": "chat", "finish_reason": "stop", "completion_tokens": 10, "duration_ms": 100} | fields
    conversation_id = conversation or uuid.uuid4()
    return UsageLog.objects.create(template_version=version, conversation_id=conversation_id, **values)


def test_a_conversation_gets_the_same_version_every_time_and_all_of_them_their_shares(template, versions):
    Experiment.objects.start(template, "tokens", {versions[0]: 80, versions[1]: 20})
    subjects = [subject(uuid.UUID(int=number)) for number in range(1000)]
    drawn = [template.version_for(each) for each in subjects]
    assert [template.version_for(each) for each in subjects[:100]] == drawn[:100]
    assert 160 < Counter(drawn)[versions[1]] < 240


def test_who_cannot_be_told_apart_gets_the_current_version(template, experiment, versions):
    assert template.version_for(subject()) == versions[0]


@pytest.mark.parametrize(
    ("shares", "why"),
    [((60, 60), "together they have to be 100 %"), ((100, 0), "at least 1 %"), ((100,), "with at least one other")],
)
def test_it_refuses_shares_that_are_none(template, versions, shares, why):
    with pytest.raises(ExperimentError, match=why):
        Experiment.objects.start(template, "tokens", dict(zip(versions, shares, strict=False)))


def test_one_experiment_at_a_time_runs_on_a_template(template, versions, experiment):
    with pytest.raises(ExperimentError, match="running already"):
        Experiment.objects.start(template, "latency", {versions[0]: 50, versions[1]: 50})


def test_the_answers_of_one_conversation_count_as_one_observation(experiment, versions):
    long_chat = uuid.uuid4()
    for _ in range(50):
        log(versions[0], long_chat)
    log(versions[0])
    log(versions[1], finish_reason="error")
    control, variant = experiment.outcomes()
    assert (control.sample.count, variant.sample.count) == (2, 0)
    assert "0 conversations" in experiment.verdict([control, variant])


def test_it_says_which_is_better(experiment, versions):
    for number in range(60):
        log(versions[0], completion_tokens=100 + number % 20)
        log(versions[1], completion_tokens=50 + number % 20)
    outcomes = experiment.outcomes()
    assert outcomes[1].is_better is True
    assert experiment.verdict(outcomes) == "Version 2 is better than the current one."


def test_it_says_when_nothing_is_shown_yet(experiment, versions):
    for number in range(60):
        log(versions[number % 2], completion_tokens=100 + number)
    assert "No difference shown yet" in experiment.verdict(experiment.outcomes())


def test_thumbs_count_by_answer_and_answers_without_one_say_nothing(template, versions, django_user_model):
    ada = django_user_model.objects.create_user("ada")
    experiment = Experiment.objects.start(template, "thumbs", {versions[0]: 50, versions[1]: 50})
    for value in (Feedback.UP, Feedback.UP, Feedback.UP, Feedback.DOWN, None):
        row = log(versions[1], message_id=uuid.uuid4())
        if value is not None:
            Feedback.objects.toggle(ada, row.conversation_id, row.message_id, value)
    sample = experiment.outcomes()[1].sample
    assert (sample.count, sample.mean) == (4, 0.75)


def test_schema_answers_that_were_cut_off_are_not_whole(template, versions):
    from schemas_app.models import Schema

    said = Schema.objects.create(name="A", slug="a").add_version(text="{}")
    experiment = Experiment.objects.start(template, "valid", {versions[0]: 50, versions[1]: 50})
    for reason in ("stop", "closed", "length", "length"):
        log(versions[1], finish_reason=reason, schema_version=said)
    log(versions[1])  # no schema: it says nothing
    assert experiment.outcomes()[1].sample.mean == 0.5
    assert experiment.outcomes()[1].sample.count == 4


def test_promoting_ends_it_and_everybody_gets_that_version(experiment, template, versions):
    experiment.end(versions[1])
    template.refresh_from_db()
    assert template.version_for(subject(uuid.uuid4())) == template.current == versions[1]
    experiment.refresh_from_db()
    assert experiment.ended_at is not None and experiment.kept == versions[1]
