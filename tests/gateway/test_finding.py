"""The pages that find a model: what they say of it, whom they ask, and what they let a hub say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from localllm.gateway import catalogue, repositories
from localllm.gateway.models import Download, LanguageModel
from localllm.inference.amounts import size
from localllm.inference.engine.gguf import read_header
from localllm.inference.engine.settings import EngineSettings
from localllm.inference.memory import fit, this_machine
from tests.hub import REPO, HubServer
from tests.server import ROOT

STARTER_PATH = ROOT / "localllm/gateway/data/starter.gguf"
STARTER = STARTER_PATH.read_bytes()
ENTRY = catalogue.named("qwen2-5-0-5b")

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def hub(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {"q/model-Q4_K_M.gguf": STARTER, "model-Q8_0.gguf": STARTER + bytes(64), "mmproj-F16.gguf": b"no model"}
    with HubServer(files, repo="", card={"license": "apache-2.0"}) as server:
        settings.HF_ENDPOINT, settings.HOME, settings.HF_TOKEN = server.url, tmp_path, ""
        yield server


@pytest.fixture
def user_client(client: Client) -> Client:
    client.force_login(User.objects.create_user("bob"))
    return client


def page(client: Client, name: str, *args: str, **query: object) -> str:
    return client.get(f"{reverse(f'models:{name}', args=args)}?{urlencode(query)}").content.decode()


class TestCatalogue:
    def test_it_shows_each_model_with_licence_and_use_the_recommended_first(self, admin_client: Client) -> None:
        text = page(admin_client, "catalogue")
        for entry in catalogue.entries():
            assert all(words in text for words in (f">{entry.name}</a>", entry.licence, entry.quality, entry.because))
        assert text.index("Recommended") < text.index("More sizes")

    def test_it_leaves_out_what_is_not_asked_for(self, admin_client: Client) -> None:
        text = page(admin_client, "catalogue", show="commercial")
        assert "Qwen2.5 0.5B" in text and "Qwen2.5 3B" not in text and "Gemma" not in text

    def test_it_asks_nobody(self, admin_client: Client, hub: HubServer) -> None:
        assert "≈" in page(admin_client, "catalogue")
        assert hub.requests == []

    def test_an_estimate_gives_way_to_what_the_hub_says(self, admin_client: Client, hub: HubServer) -> None:
        assert ENTRY and "the hub says: apache-2.0" in page(admin_client, "catalogue-entry", ENTRY.slug)
        known = repositories.known(ENTRY.repository)
        assert known and size(len(STARTER)) in page(admin_client, "catalogue")

    def test_a_repository_that_is_gone_is_said_and_the_estimates_stay(
        self, admin_client: Client, hub: HubServer
    ) -> None:
        hub.repo = REPO
        text = page(admin_client, "catalogue-entry", "phi-3-mini")
        assert "there is no such repository" in text and "Repositories are renamed" in text and "≈" in text

    def test_who_may_not_add_models_looks_and_asks_no_hub(self, user_client: Client, hub: HubServer) -> None:
        for text in (page(user_client, "catalogue"), page(user_client, "catalogue-entry", "qwen3-8b")):
            assert "An admin of this server can get a model" in text
            assert "Get this" not in text
        assert hub.requests == []

    def test_one_click_gets_the_best_of_what_the_repository_has(self, admin_client: Client, hub: HubServer) -> None:
        assert ENTRY
        admin_client.post(reverse("models:catalogue-get", args=[ENTRY.slug]))
        row = Download.objects.get()
        assert (row.name, row.label) == ("model-Q8_0.gguf", "Qwen2.5 0.5B Q8_0")
        assert row.defaults["licence"] == "Apache 2.0"

    def test_a_hub_that_refuses_is_one_sentence_on_the_page(self, admin_client: Client, hub: HubServer) -> None:
        hub.refusals = [(429, {})] * 4
        answer = admin_client.post(reverse("models:catalogue-get", args=["qwen3-8b"]), follow=True)
        assert answer.content.decode().count("too busy or out of order (429") == 1


class TestFirstModel:
    def test_it_names_the_recommended_model_with_its_licence(self, admin_client: Client) -> None:
        (best,) = [c.entry for c in catalogue.choices(this_machine(), EngineSettings()) if c.is_recommended]
        text = page(admin_client, "catalogue-first")
        assert f"Get {best.name}" in text and best.licence in text

    def test_it_sends_others_to_an_admin(self, user_client: Client) -> None:
        text = page(user_client, "catalogue-first")
        assert "An admin of this server can get a real one" in text and "<form" not in text

    def test_offline_it_says_how_to_register_a_file(self, admin_client: Client, settings: Settings) -> None:
        settings.OFFLINE = True
        text = page(admin_client, "catalogue-first")
        assert "manage.py registermodel" in text and "<form" not in text


class TestRepository:
    def test_it_lists_the_files_of_any_repository(self, admin_client: Client, hub: HubServer) -> None:
        text = page(admin_client, "hub", repo="someone/else")
        assert "3 GGUF files" in text and "apache-2.0" in text
        assert all(name in text for name in ("q/model-Q4_K_M.gguf", "Q8_0", size(len(STARTER))))

    @pytest.mark.parametrize("query", [{}, {"n_ctx": 512, "num_slots": 2, "kv_type": "q8_0"}])
    def test_the_account_is_that_of_the_header(
        self, admin_client: Client, hub: HubServer, query: dict[str, object]
    ) -> None:
        text = page(admin_client, "hub-account", repo=REPO, file="q/model-Q4_K_M.gguf", **query)
        need = fit(read_header(STARTER_PATH), EngineSettings(**query), this_machine()).need
        parts = (need.weights_bytes, need.kv_bytes, need.compute_bytes, need.process_bytes, need.used_bytes)
        assert [f"<td>{size(part)}</td>" in text for part in parts] == [True] * 5
        assert f"<strong>{need.window:,}</strong> tokens" in text

    def test_sliding_costs_no_network(self, admin_client: Client, hub: HubServer) -> None:
        page(admin_client, "hub", repo="someone/slid", file="model-Q8_0.gguf")
        hub.requests.clear()
        for n_ctx in (256, 512, 1024):
            assert "Sum" in page(admin_client, "hub-account", repo="someone/slid", file="model-Q8_0.gguf", n_ctx=n_ctx)
        assert hub.requests == []

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ({"file": "mmproj-F16.gguf"}, "instead of “GGUF”"),
            ({"file": "nothing.gguf"}, "has no GGUF file named"),
            ({"repo": "../../etc"}, "write it as owner/name"),
            ({"n_ctx": "-1"}, "Context window: Ensure this value is greater"),
            ({"n_ctx": "many"}, "Context window: Enter a whole number"),
            ({"num_slots": "9999"}, "Conversations: Ensure this value is less"),
            ({"kv_type": "q2"}, "KV cache: Select a valid choice"),
        ],
    )
    def test_what_cannot_be_told_is_a_sentence(
        self, admin_client: Client, hub: HubServer, query: dict[str, str], words: str
    ) -> None:
        assert words in page(admin_client, "hub-account", **{"repo": REPO, "file": "model-Q8_0.gguf"} | query)

    def test_a_gated_file_says_what_to_do(self, admin_client: Client, hub: HubServer) -> None:
        hub.files, hub.is_gated = {"gated.gguf": STARTER + b"gated"}, True
        text = page(admin_client, "hub", repo="someone/gated", file="gated.gguf")
        assert "accept the licence" in text and "HF_TOKEN" in text

    def test_names_of_a_hub_are_text(self, admin_client: Client, hub: HubServer) -> None:
        name = "<img src=x onerror=alert(1)>‮\U0001f600.gguf"
        hub.files, hub.card = {name: STARTER + b"name"}, {"license": "<script>alert(1)</script>"}
        for query in ({}, {"file": name}):
            text = page(admin_client, "hub", repo="someone/hostile", **query)
            assert "<img src=x" not in text and "<script>alert" not in text and "&lt;img src=x" in text

    def test_offline_no_page_asks(self, admin_client: Client, hub: HubServer, settings: Settings) -> None:
        settings.OFFLINE = True
        text = page(admin_client, "hub", repo="someone/offline", file="model-Q8_0.gguf")
        page(admin_client, "catalogue-entry", "qwen3-4b")
        admin_client.post(reverse("models:catalogue-get", args=["qwen3-4b"]))
        admin_client.post(reverse("models:download-start"), {"repo": "someone/offline", "file": "model-Q8_0.gguf"})
        assert "LOCALLLM_OFFLINE is set" in text
        assert (hub.requests, Download.objects.count()) == ([], 0)


class TestQueue:
    @pytest.fixture
    def row(self, admin_client: Client, hub: HubServer) -> Download:
        form = {"repo": REPO, "file": "q/model-Q4_K_M.gguf", "n_ctx": "512", "num_slots": "2", "kv_type": "q8_0"}
        admin_client.post(reverse("models:download-start"), form)
        return Download.objects.get()

    def change(self, client: Client, row: Download, verb: str) -> str:
        client.post(reverse(f"models:download-{verb}", args=[row.job_id]))
        row.job.refresh_from_db()
        return row.job.state

    def test_it_is_loaded_as_it_was_looked_at(self, row: Download) -> None:
        assert row.defaults == {"repository": REPO, "licence": "apache-2.0", "n_ctx": 512, "num_slots": 2} | {
            "kv_type": "q8_0"
        }

    def test_it_is_paused_resumed_and_cancelled(self, admin_client: Client, row: Download) -> None:
        assert [self.change(admin_client, row, verb) for verb in ("pause", "resume", "cancel", "resume")] == [
            "paused",
            "queued",
            "cancelled",
            "cancelled",
        ]

    def test_it_says_how_far_it_is_and_why_nothing_comes(self, admin_client: Client, row: Download) -> None:
        row.job.begin()
        Download.objects.update(num_bytes=1_000_000, bytes_per_s=50_000, delay="The hub is too busy.")
        text = page(admin_client, "downloads")
        for words in ("1.0 MB of 3.6 MB", "50 kB/s", "about 52 s to go", "The hub is too busy.", "every 1s"):
            assert words in text

    def test_it_rests_while_nothing_is_live(self, admin_client: Client, row: Download) -> None:
        row.job.pause()
        assert "every 1s" not in page(admin_client, "downloads")

    def test_the_admin_has_the_same_verbs(self, admin_client: Client, row: Download) -> None:
        url = reverse("admin:gateway_download_changelist")
        for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            admin_client.post(url, {"action": action, "_selected_action": row.pk})
            row.job.refresh_from_db()
            assert row.job.state == state

    def test_the_admin_lets_only_those_change_it_who_may_add_models(self, client: Client, row: Download) -> None:
        from django.contrib.auth.models import Permission

        staff = User.objects.create_user("eve", is_staff=True)
        staff.user_permissions.add(Permission.objects.get(codename="view_download"))
        client.force_login(staff)
        assert "A file" not in client.get(reverse("admin:gateway_download_changelist")).content.decode()
        client.post(reverse("admin:gateway_download_changelist"), {"action": "cancel", "_selected_action": row.pk})
        row.job.refresh_from_db()
        assert row.job.state == "queued"


def test_a_model_that_is_here_is_not_offered_again(admin_client: Client, hub: HubServer) -> None:
    LanguageModel.objects.register(STARTER_PATH, name="here")
    text = page(admin_client, "hub", repo="someone/installed")
    assert text.count("Installed") == 1
