"""The system prompt of a chat: made by a template, logged by version, drawn by an experiment, on the real engine."""

import pytest
import pytest_asyncio
from django.contrib.auth.models import User

from chat import live
from chat.forms import SettingsForm
from chat.models import Conversation
from localllm.gateway import database, providers
from localllm.gateway.models import Experiment, LanguageModel, PromptTemplate, PromptTemplateVersion, UsageLog
from localllm.gateway.models.prompt_template import install_shipped
from tests.inference.engine_on_starter import STARTER, SYSTEM

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture(autouse=True)
def model(transactional_db):
    install_shipped(PromptTemplate.objects, PromptTemplateVersion.objects)
    return LanguageModel.objects.register(
        STARTER, name="starter", make_default=True, system_prompt=SYSTEM, temperature=0.3
    )


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="package")
async def engines_end():
    yield
    await providers.local.aclose()


def chat(**settings):
    owner, _ = User.objects.get_or_create(username="alice")
    return Conversation.objects.create(owner=owner, max_tokens=8, **settings)


def chat_template(text, name="pirate", **fields):
    template = PromptTemplate.objects.create(name=name, use_case="chat", **fields)
    template.make_current(template.add_version(text))
    return template


async def asked(conversation):
    """What the log has of an answer in `conversation`."""
    reply = (await database.write(conversation.send, "c1", "Who are you?"))[1]
    live.start(reply)
    await live._live[reply.pk].task
    return await database.read(UsageLog.objects.select_related("template_version__template").get, message_id=reply.pk)


async def test_every_answer_logs_the_version_that_made_its_system_prompt():
    row = await asked(await database.write(chat))
    assert str(row.template_version) == "chat v1" and row.template_version.is_shipped
    assert row.dialogue[0].content == SYSTEM == row.template_variables["system_prompt"]


async def test_a_chosen_template_speaks_with_the_chats_own_text_in_it():
    template = await database.write(chat_template, "Talk like a pirate. {{ system_prompt }}")
    row = await asked(await database.write(chat, template=template, system_prompt="Be brief."))
    assert row.template_version == template.current
    assert row.dialogue[0].content == "Talk like a pirate. Be brief."


async def test_a_text_of_ones_own_stands_alone_where_no_template_is_chosen():
    row = await asked(await database.write(chat, system_prompt="Be brief."))
    assert row.template_version is None and row.dialogue[0].content == "Be brief."


async def test_two_chats_get_the_variants_that_their_ids_draw_and_keep_them():
    def start():
        template = PromptTemplate.objects.get(name="chat", family="")
        other = template.add_version("Be brief. {{ system_prompt }}")
        Experiment.objects.start(template, "tokens", {template.current_version: 50, other: 50})
        chats = {}
        while len(chats) < 2:
            conversation = chat()
            chats[conversation.prompt_version] = conversation
        return chats

    for version, conversation in (await database.write(start)).items():
        row = await asked(conversation)
        assert row.template_version == version
        assert row.dialogue[0].content == version.render({"system_prompt": SYSTEM})
        again = await database.read(Conversation.objects.get, pk=conversation.pk)
        assert await database.read(lambda chat=again: chat.prompt_version) == version


async def test_a_family_has_its_own_variant(model):
    def make():
        template = chat_template("Ahoy.")
        chat_template("Ahoy, llama.", family="llama")
        model.description = "llama, 3M parameters, Q8_0"
        model.save()
        return chat(template=template)

    row = await asked(await database.write(make))
    assert row.dialogue[0].content == "Ahoy, llama."


async def test_a_template_that_asks_for_what_a_chat_does_not_know_fails_the_answer_in_words():
    template = await database.write(chat_template, "{{ mood }}")
    conversation = await database.write(chat, template=template)
    reply = (await database.write(conversation.send, "c1", "Who are you?"))[1]
    live.start(reply)
    await live._live[reply.pk].task
    await database.read(reply.refresh_from_db)
    assert reply.status == "failed" and "No value was given for “mood”" in reply.error


async def test_the_settings_refuse_a_text_that_the_template_has_no_place_for():
    def errors():
        template = chat_template("Ahoy.")
        form = SettingsForm({"template": template.pk, "system_prompt": "Be brief."}, instance=chat(), inherits=None)
        return form.errors

    assert "has no place for a text of your own" in str(await database.write(errors))
