"""A file in chunks becomes a model; what will be none is refused as soon as its header is here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django.fixtures import Settings

from localllm.gateway import uploads
from localllm.gateway.models import Job, LanguageModel, Upload
from localllm.inference.chunked_file import WrongOffset
from localllm.inference.errors import InferenceError, ModelRefused
from tests.gguf_files import STARTER

pytestmark = pytest.mark.django_db(transaction=True)

CONTENT = STARTER.read_bytes()
CHUNK = 1 << 20


@pytest.fixture(autouse=True)
def home(settings: Settings, tmp_path: Path) -> Path:
    settings.HOME = tmp_path
    return tmp_path


@pytest.fixture
def ada() -> User:
    user = User.objects.create_user("ada")
    user.user_permissions.add(Permission.objects.get(codename="add_languagemodel"))
    return user


@pytest.fixture
def browser(client: Client, ada: User) -> Iterator[Client]:
    client.force_login(ada)
    yield client


def begin(browser: Client, content: bytes = CONTENT, name: str = "mine.gguf", modified: int = 7) -> dict[str, Any]:
    form = {"name": name, "size": len(content), "modified": modified}
    response = browser.post(reverse("models:upload-begin"), form)
    assert response.status_code == 200, response.content
    body: dict[str, Any] = response.json()
    return body


def chunk(browser: Client, upload: dict[str, Any], offset: int, data: bytes) -> HttpResponse:
    address = f"{reverse('models:upload-chunk', args=[upload['id']])}?offset={offset}"
    response: Any = browser.post(address, data, content_type="application/octet-stream")
    return response


def send(browser: Client, content: bytes = CONTENT, name: str = "mine.gguf") -> dict[str, Any]:
    upload = begin(browser, content, name)
    for offset in range(upload["num_bytes"], len(content), CHUNK):
        assert chunk(browser, upload, offset, content[offset : offset + CHUNK]).status_code == 200
    return upload


def run(upload: dict[str, Any]) -> Upload:
    """What the job runner of the server does with it."""
    job = Job.objects.get(upload=upload["id"])
    assert job.begin()
    try:
        async_to_sync(uploads.run)(job)
        job.finish()
    except InferenceError as exc:
        job.finish(str(exc))
    return Upload.objects.select_related("job", "model").get(pk=upload["id"])


def test_a_file_that_was_changed_meanwhile_begins_anew(browser: Client) -> None:
    first = begin(browser)
    assert begin(browser)["id"] == first["id"] != begin(browser, modified=8)["id"]


def test_a_file_becomes_a_model_named_after_it(browser: Client, home: Path) -> None:
    done = run(send(browser, name="C:\\models\\My Starter.gguf"))
    assert (done.state, done.reason, done.num_bytes) == ("complete", "", len(CONTENT))
    assert done.model is not None
    assert (done.model.name, done.model.title) == ("my-starter", "My Starter")
    assert done.model.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert done.model.path == str(home / f"models/{done.model.sha256}.gguf")
    assert [path.name for path in (home / "models").iterdir()] == [f"{done.model.sha256}.gguf"]


def test_it_goes_on_with_the_same_file_where_it_stopped(browser: Client) -> None:
    first = begin(browser)
    chunk(browser, first, 0, CONTENT[:CHUNK])
    again = begin(browser)
    assert (again["id"], again["num_bytes"]) == (first["id"], CHUNK)
    assert begin(browser, name="other.gguf")["id"] != first["id"]


def test_a_chunk_that_does_not_follow_is_told_where_to_go_on(browser: Client) -> None:
    upload = begin(browser)
    chunk(browser, upload, 0, CONTENT[:CHUNK])
    for offset in (0, 5, 2 * CHUNK):
        response: Any = chunk(browser, upload, offset, b"x")
        assert (response.status_code, response.json()["num_bytes"]) == (409, CHUNK)
    assert Upload.objects.get().num_bytes == CHUNK


def test_what_is_no_model_is_refused_with_its_first_bytes(browser: Client, home: Path) -> None:
    upload = begin(browser, bytes(CHUNK * 3))
    response: Any = chunk(browser, upload, 0, bytes(CHUNK))
    assert response.status_code == 422 and "instead of “GGUF”" in response.json()["error"]
    assert not list((home / "models").iterdir())
    assert browser.get(reverse("models:upload-status", args=[upload["id"]])).json()["state"] == "failed"


def test_a_size_that_does_not_fit_its_header_is_refused_early(browser: Client) -> None:
    upload = begin(browser, CONTENT[:2_000_000])
    response: Any = chunk(browser, upload, 0, CONTENT[:CHUNK])
    assert response.status_code == 422 and "it ends at byte 2,000,000" in response.json()["error"]


def test_more_than_was_told_is_refused(browser: Client) -> None:
    upload = begin(browser, CONTENT[:100])
    response: Any = chunk(browser, upload, 0, CONTENT[:200])
    assert response.status_code == 422 and "longer than the 100 bytes" in response.json()["error"]


def test_a_chunk_over_the_limit_is_refused(browser: Client, settings: Settings) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    assert chunk(browser, begin(browser), 0, CONTENT[:1001]).status_code == 413
    assert Upload.objects.get().num_bytes == 0


def test_what_does_not_pass_its_trial_is_not_kept(browser: Client, home: Path) -> None:
    done = run(send(browser, CONTENT[:-300_000] + b"\xff" * 300_000))
    assert done.state == "failed" and "compute to no number" in done.reason
    assert not list((home / "models").iterdir()) and not LanguageModel.objects.exists()


def test_a_restart_in_the_middle_of_the_check_loses_nothing(browser: Client, home: Path) -> None:
    upload = Upload.objects.get(pk=send(browser)["id"])
    async_to_sync(uploads._adopt)(upload)
    assert run({"id": upload.pk}).state == "complete"


def test_the_same_file_twice_is_kept_once(browser: Client, home: Path) -> None:
    first, second = run(send(browser)), run(send(browser, name="again.gguf"))
    assert first.model == second.model and len(list((home / "models").iterdir())) == 1


def test_a_cancelled_one_leaves_nothing(browser: Client, home: Path) -> None:
    upload = begin(browser)
    chunk(browser, upload, 0, CONTENT[:CHUNK])
    browser.post(reverse("models:upload-cancel", args=[upload["id"]]))
    assert not Upload.objects.exists() and not list((home / "models").iterdir())


def test_abandoned_ones_are_removed_after_a_week(browser: Client, ada: User, home: Path) -> None:
    old, new = begin(browser), begin(browser, name="new.gguf")
    for upload in (old, new):
        chunk(browser, upload, 0, CONTENT[:CHUNK])
    Upload.objects.filter(pk=old["id"]).update(updated_at=timezone.now() - timedelta(days=8))
    uploads.remove_abandoned()
    assert [path.stem for path in (home / "models").iterdir()] == [new["id"]]


def test_a_file_that_the_disk_does_not_hold_is_refused_before_its_first_byte(browser: Client) -> None:
    response = browser.post(reverse("models:upload-begin"), {"name": "huge.gguf", "size": 1 << 52})
    assert response.status_code == 400 and "must stay free" in response.json()["error"]
    assert not Upload.objects.exists()


@pytest.mark.parametrize("form", [{}, {"name": "m.gguf"}, {"name": "m.gguf", "size": "-1"}, {"name": "m", "size": "9"}])
def test_nonsense_is_refused_in_words(browser: Client, form: dict[str, str]) -> None:
    response = browser.post(reverse("models:upload-begin"), form)
    assert response.status_code == 400 and response.json()["error"].endswith(".")


@pytest.mark.parametrize("name", ["../../x.gguf", "CON.gguf", f"{'x' * 400}.gguf", "💥.gguf", "a\\b\\..\\c.gguf"])
def test_a_name_is_a_label_and_never_a_path(ada: User, home: Path, name: str) -> None:
    upload = uploads.begin(ada, name, len(CONTENT))
    uploads.receive(upload, 0, CONTENT[:CHUNK])
    assert "/" not in upload.name and len(upload.name) <= 300
    assert [path.name for path in (home / "models").iterdir()] == [f"{upload.pk}.upload"]


def test_nobody_else_reaches_it(browser: Client, client: Client) -> None:
    upload = begin(browser)
    client.force_login(User.objects.create_superuser("eve"))
    assert chunk(client, upload, 0, b"x").status_code == 404
    client.force_login(User.objects.create_user("bob"))
    assert client.get(reverse("models:uploads")).status_code == 403


def test_it_refuses_what_is_sent_after_the_end(ada: User) -> None:
    upload = uploads.begin(ada, "m.gguf", len(CONTENT))
    uploads.receive(upload, 0, CONTENT)
    with pytest.raises(WrongOffset):
        uploads.receive(upload, len(CONTENT), b"x")
    with pytest.raises(ModelRefused):
        uploads.begin(ada, "m.txt", 9)
