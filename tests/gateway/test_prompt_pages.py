"""The pages of prompts: everybody reads, who may changes, and what is saved is checked before."""

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from localllm.gateway.models import Experiment, PromptTemplate, Trial, UsageLog
from localllm.gateway.models.usage import pack_messages
from localllm.inference.types import Message, Usage

pytestmark = pytest.mark.django_db
ANSWER = Message("assistant", "An old title")


@pytest.fixture
def editor(client):
    user = User.objects.create_user("eve")
    user.user_permissions.add(Permission.objects.get(codename="change_prompttemplate"))
    client.force_login(user)
    return client


@pytest.fixture
def reader(client):
    client.force_login(User.objects.create_user("bob"))
    return client


@pytest.fixture
def title():
    return PromptTemplate.objects.get(name="title")


def address(name, *args, **query):
    return reverse(f"prompts:{name}", args=args, query=query)


def new(**fields):
    return {"use_case": "message", "name": "translate", "text": "Translate into {{ language }}:\n{{ text }}"} | fields


def test_everybody_reads_the_prompts_and_few_are_offered_to_change_them(reader, title):
    page = reader.get(address("index")).content.decode()
    assert "rag_query" in page and "for mistral" in page and "New prompt" not in page
    page = reader.get(address("show", title.pk)).content.decode()
    assert "Write a title of at most six words" in page and address("edit", title.pk) not in page


def test_a_new_prompt_has_its_first_version_current(editor):
    assert editor.post(address("new"), new()).status_code == 302
    template = PromptTemplate.objects.get(name="translate")
    assert template.current.number == 1 and template.current.created_by.username == "eve"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"text": "{{ text"}, "is no variable"),
        ({"text": "x" * 1_000_000}, "at most 100,000 are taken"),
        ({"use_case": "title"}, "Nothing is known of “language”, “text” here"),
        ({"name": "chat", "use_case": "chat", "text": "Hello."}, "one of this name already"),
        ({"family": "qwen2"}, "for all models yet. Make that one first"),
        ({"name": "title", "family": "qwen2", "use_case": "message"}, "is for: Title of a chat"),
    ],
)
def test_what_cannot_be_used_is_not_saved_and_told_beside_the_field(editor, fields, why):
    response = editor.post(address("new"), new(**fields))
    assert response.status_code == 400 and why in response.content.decode()
    assert not PromptTemplate.objects.exclude(is_shipped=True).exists()


def test_a_changed_text_is_a_version_that_may_wait_beside_the_current_one(editor, title):
    shipped = title.current
    editor.post(address("edit", title.pk), {"text": "{{ question }}?", "note": "Shorter"})
    title.refresh_from_db()
    assert title.current == shipped and title.versions.first().note == "Shorter"
    editor.post(address("edit", title.pk), {"text": "Name it: {{ question }}", "is_current": "on"})
    title.refresh_from_db()
    assert title.current.number == 3


def test_rolling_back_makes_an_old_version_current(editor, title):
    shipped = title.current
    title.make_current(title.add_version("{{ question }}?"))
    editor.post(address("make-current", title.pk), {"version": 1})
    title.refresh_from_db()
    assert title.current == shipped


def test_versions_stand_side_by_side(reader, title):
    title.add_version("Another text <b>")
    page = reader.get(address("compare", title.pk, **{"from": 1, "to": 2})).content.decode()
    assert "<del>Write a title" in page and "<ins>Another text &lt;b&gt;</ins>" in page


def test_an_own_prompt_can_be_deleted_and_restored_a_shipped_one_cannot(editor, title):
    editor.post(address("new"), new())
    own = PromptTemplate.objects.get(name="translate")
    editor.post(address("delete", own.pk))
    assert not PromptTemplate.objects.in_use().filter(pk=own.pk).exists()
    assert "translate" in editor.get(address("index", deleted=1)).content.decode()
    editor.post(address("restore", own.pk))
    assert PromptTemplate.objects.in_use().filter(pk=own.pk).exists()
    page = editor.post(address("delete", title.pk), follow=True).content.decode()
    assert "Write another version of it instead" in page


def test_the_preview_says_what_is_wrong_and_what_is_not_used(editor):
    page = editor.post(address("preview"), {"text": "{{ a }", "use_case": "message"}).content.decode()
    assert "line 1, column 1 is no variable" in page
    page = editor.post(address("preview"), {"text": "{{ question }}", "use_case": "title"}).content.decode()
    assert "Why is the sky blue?" in page and "<code>answer</code>" in page


def test_the_list_to_insert_from_holds_messages_and_the_familys_own_variants(reader):
    page = reader.get(address("picker", q="rag")).content.decode()
    assert page.count('role="option"') == 1 and "/rag_query" in page
    assert "compression" not in reader.get(address("picker")).content.decode()


def test_a_value_with_template_syntax_is_inserted_as_it_is(reader):
    summarization = PromptTemplate.objects.get(name="summarization")
    values = {"value-text": "{{ focus }} {% x %}", "value-max_tokens": "9", "value-focus": "sums"}
    response = reader.post(address("insert", summarization.pk), values)
    assert response["Content-Type"].startswith("text/plain") and "{{ focus }} {% x %}" in response.content.decode()
    response = reader.post(address("insert", summarization.pk), {"value-text": "a"})
    assert response.status_code == 400 and "“max_tokens”" in response.content.decode()


def test_an_experiment_is_begun_read_and_ended_by_promoting_a_version(editor, title):
    other = title.add_version("{{ question }}?")
    shares = {"metric": "tokens", "share-1": 50, "share-2": 50}
    page = editor.post(address("experiment-new", title.pk), shares, follow=True).content.decode()
    assert "Too little to say yet" in page and "Promote" in page
    refused = editor.post(address("make-current", title.pk), {"version": 2}, follow=True).content.decode()
    assert "End it first" in refused
    editor.post(address("experiment-end", Experiment.objects.get().pk), {"kept": 2})
    title.refresh_from_db()
    assert title.current == other


def test_shares_that_are_none_are_told(editor, title):
    title.add_version("{{ question }}?")
    response = editor.post(address("experiment-new", title.pk), {"metric": "tokens", "share-1": 50, "share-2": 60})
    assert response.status_code == 400 and "together they have to be 100 %" in response.content.decode()


def test_a_trial_is_queued_and_its_page_shows_old_and_new_side_by_side(editor, title):
    eve = User.objects.get(username="eve")
    said = pack_messages((Message("user", title.current.render({"question": "Why?", "answer": "So."})), ANSWER))
    variables = {"question": "Why?", "answer": "So."}
    fields = {"template_version": title.current, "template_variables": variables, "messages": said, "user": eve}
    UsageLog.objects.create(source="chat", finish_reason="stop", **fields)
    page = editor.post(address("trial-new", title.pk), {"version": title.current.pk, "number": 5}, follow=True)
    assert "Not asked yet" in page.content.decode()
    answer = Trial.objects.get().answers.get()
    answer.succeed("A new title", Usage())
    page = editor.get(address("trial", Trial.objects.get().pk)).content.decode()
    assert "<del>An old title</del>" in page and "<ins>A new title</ins>" in page


def test_a_trial_without_anything_to_try_says_so(editor, title):
    response = editor.post(address("trial-new", title.pk), {"version": title.current.pk, "number": 5})
    assert response.status_code == 400 and "Ask something with it first" in response.content.decode()


def test_the_record_of_a_generation_leads_to_the_version_it_was_asked_with(reader, title):
    row = UsageLog.objects.create(
        source="api", finish_reason="stop", user=User.objects.get(username="bob"), template_version=title.current
    )
    page = reader.get(row.get_absolute_url()).content.decode()
    assert f'<a href="{title.current.get_absolute_url()}">title v1</a>' in page
