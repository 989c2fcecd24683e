"""An embedding model is known as one: no picker offers it, no chat is answered by it, no default is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from localllm.gateway import completions, database
from localllm.gateway.models import LanguageModel
from localllm.gateway.models.language_model import ModelError
from localllm.gateway.registration import register
from localllm.inference.errors import ProviderError
from localllm.inference.types import ChatRequest, Message
from tests.gguf_files import bert

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return bert(tmp_path / "embeddings.gguf")


async def test_it_is_registered_as_what_it_is(path: Path) -> None:
    model = await register(path)
    assert (model.is_embedding, model.is_default) == (True, False)
    with pytest.raises(ModelError, match="cannot answer chats"):
        await register(path, make_default=True)
    assert not await database.read(LanguageModel.objects.filter(is_default=True).exists)


async def test_it_answers_nobody(path: Path) -> None:
    model = await register(path)
    request = ChatRequest(messages=(Message("user", "Hello"),))
    with pytest.raises(ProviderError, match="Choose another model"):
        await anext(completions.stream(request, model, completions.Asker(source="chat")))


def test_no_picker_offers_it(client: Client) -> None:
    client.force_login(User.objects.create_user("ada"))
    file = {"sha256": "0", "size_bytes": 1, "file_mtime_ns": 0}
    LanguageModel.objects.create(name="writes", path="/writes", is_default=True, **file)
    LanguageModel.objects.create(name="embeds", path="/embeds", is_embedding=True, **file)
    for page in ("chat:new", "schemas:batch-new"):
        text = client.get(reverse(page)).content.decode()
        assert "writes" in text and "embeds" not in text
