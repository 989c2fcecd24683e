"""Batches: what is taken as input, and on a real server with the starter model, what becomes of each row."""

import csv
import io
import json
import sqlite3
import time
from contextlib import closing
from datetime import datetime

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from localllm.gateway import database
from localllm.gateway.models import Job, LanguageModel
from schemas_app.batches import export
from schemas_app.batches.inputs import MAX_CHARS, MAX_ROWS, InputError, checked, read, split
from schemas_app.models import Batch, BatchRow, Schema
from tests.browser_client import Browser
from tests.inference.engine_on_starter import STARTER
from tests.server import ADMIN, PASSWORD, Server

MOOD = json.dumps(
    {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["mood", "stars"],
        "additionalProperties": False,
    }
)
NUM_SLOTS = 4
LIMIT_S = 100


# Inputs


@pytest.mark.parametrize(
    ("by", "inputs"), [("line", ["one", "two", "three"]), ("block", ["one\ntwo", "three"])], ids=["line", "block"]
)
def test_pasted_text_is_divided_by_lines_or_blocks(by, inputs):
    assert checked(split("one\r\ntwo\r\n  \r\n\r\nthree\r\n", by)) == inputs


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_it_finds_out_how_a_csv_file_is_written(delimiter):
    lines = [["name", "text"], ["Maya", f'"It was{delimiter} in all,\nfine."'], ["Jo", "Bad."]]
    table = read("\n".join(delimiter.join(line) for line in lines).encode(), "a.csv")
    assert (table.columns, table.has_header) == (("name", "text"), True)
    assert table.inputs(["text"]) == [f"It was{delimiter} in all,\nfine.", "Bad."]
    assert table.inputs()[1] == "name: Jo\ntext: Bad."


def test_a_csv_file_without_a_header_keeps_its_first_row():
    table = read(b"Maya,3\nJo,4\n", "a.csv")
    assert (table.columns, table.has_header, len(table.records)) == (("Column 1", "Column 2"), False, 2)
    assert read(b"Maya,3\nJo,4\n", "a.csv", has_header=True).columns == ("Maya", "3")


@pytest.mark.parametrize(
    ("codec", "said"), [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("cp1252", "Latin-1"), ("utf-16", "UTF-16")]
)
def test_it_reads_the_encodings_of_spreadsheets(codec, said):
    table = read("text\nCafé “Zoë”\n".encode(codec), "a.csv")
    assert (table.encoding, table.columns, table.inputs()) == (said, ("text",), ["Café “Zoë”"])


def test_a_jsonl_file_gives_its_fields_or_its_lines():
    table = read(b'{"text": "Hi", "n": 1}\n\n{"text": "Ho", "more": {"a": 2}}\n', "a.jsonl")
    assert table.columns == ("text", "n", "more")
    assert table.inputs(["text"]) == ["Hi", "Ho"]
    assert table.inputs()[1] == '{"text": "Ho", "more": {"a": 2}}'


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b"", "a.csv", "empty"),
        (b"a,b\n1,2\n3,4,5\n", "a.csv", "Line 3 has 3 cells, but there are 2 columns"),
        (b'a,b\n"1,2\n', "a.csv", "cannot be read as CSV"),
        (b'{"a": 1}\n{"a": \n', "a.jsonl", "Line 2 is not JSON"),
        (b"[" * 100_000, "a.jsonl", "nests too deep"),
        (b"text\x01\x02", "a.csv", "control characters"),
        (b"PK\x03\x04...", "a.xlsx", "Save the sheet as CSV"),
        (b"a" * (9 << 20), "a.csv", "8,388,608 at most"),
    ],
    ids=["empty", "ragged", "open quote", "half JSON", "deep", "UTF-16", "spreadsheet", "large"],
)
def test_what_cannot_be_read_is_refused_with_the_reason(data, name, said):
    with pytest.raises(InputError, match=said):
        read(data, name)


@pytest.mark.parametrize(
    ("texts", "said"),
    [([" ", ""], "no input"), (["a"] * (MAX_ROWS + 1), "10,001 inputs"), (["a" * (MAX_CHARS + 1)], "Input 1 has")],
    ids=["none", "too many", "too long"],
)
def test_a_batch_has_limits(texts, said):
    with pytest.raises(InputError, match=said):
        checked(texts)


# Pages and files, without a running job


@pytest.fixture
def owner(db, client):
    user = User.objects.create_user("maya")
    client.force_login(user)
    return user


@pytest.fixture
def schema(owner):
    schema = Schema.objects.create(owner=owner, slug="mood", name="Mood")
    schema.add_version(text=MOOD, max_tokens=30)
    return schema


@pytest.fixture
def model(db):
    return LanguageModel.objects.register(STARTER, name="starter", make_default=True)


@pytest.fixture
def form(schema, model):
    return {"schema": "mood", "model": "starter", "kind": "paste", "by": "line", "text": "Fine.\nAwful."}


def upload(data, name="reviews.csv"):
    return {"kind": "file", "file": SimpleUploadedFile(name, data)}


def test_starting_makes_a_row_for_each_input(client, form, schema):
    answer = client.post(reverse("schemas:batch-create"), form)
    batch = Batch.objects.get()
    assert answer["Location"] == reverse("schemas:batch", args=[batch.pk])
    assert (batch.job.state, batch.job.num_total, batch.schema_version) == ("queued", 2, schema.current)
    assert list(batch.rows.values_list("number", "input")) == [(1, "Fine."), (2, "Awful.")]


def test_the_preview_offers_the_columns_and_starts_nothing(client, form):
    answer = client.post(reverse("schemas:batch-preview"), form | upload(b"who;text\nMaya;Fine.\nJo;Bad.\n"))
    assert b"2 inputs" in answer.content and b'value="text"' in answer.content
    assert not Job.objects.exists()


def test_chosen_columns_count_for_their_file_only(client, form):
    first, second = b"who,text\nMaya,Fine.\n", b"text,stars\nBad.,1\n"
    page = client.post(reverse("schemas:batch-preview"), form | upload(first))
    chosen = {"columns": ["text"], "header": "yes", "delimiter": "commas", "digest": page.context["form"].file_digest}
    client.post(reverse("schemas:batch-create"), form | chosen | upload(first))
    client.post(reverse("schemas:batch-create"), form | chosen | upload(second))
    inputs = BatchRow.objects.order_by("batch__job__created_at").values_list("input", flat=True)
    assert list(inputs) == ["Fine.", "text: Bad.\nstars: 1"]


def test_what_cannot_be_started_is_said_on_the_page(client, form):
    answer = client.post(reverse("schemas:batch-create"), form | {"text": " "})
    assert answer.status_code == 400 and b"There is no input here" in answer.content


def test_a_schema_of_somebody_else_cannot_be_used(client, form, schema):
    Schema.objects.filter(pk=schema.pk).update(owner=User.objects.create_user("other"))
    assert client.post(reverse("schemas:batch-create"), form).status_code == 400
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+49 30", "'+49 30"),
        ("-x", "'-x"),
        ("@me", "'@me"),
        ("-5.2", "-5.2"),
        (-5, -5),
        ("a=1", "a=1"),
    ],
)
def test_a_spreadsheet_runs_no_cell_as_a_formula(value, cell):
    assert export._cell(value) == cell


@pytest.mark.django_db(transaction=True)
async def test_a_batch_is_exported_with_its_values_in_columns(async_client, transactional_db):
    def make():
        owner = User.objects.create_user("maya")
        job = Job.objects.create(kind="batch", title="Mood: reviews.csv", owner=owner, state="complete")
        batch = Batch.objects.create(job=job)
        output = '{"who": {"name": "=cmd", "a.b": 1}, "tags": ["x", "y"], "ok": true}'
        batch.rows.create(number=1, input="Hi, “you”", status="done", output=output, guarantee="constrained")
        batch.rows.create(number=2, input="-", status="failed", error_kind="truncated", error="Too long.")
        return owner, batch

    owner, batch = await database.write(make)
    await async_client.aforce_login(owner)

    async def download(name):
        answer = await async_client.get(reverse(f"schemas:{name}", args=[batch.pk]))
        return b"".join([part async for part in answer.streaming_content]).decode("utf-8-sig")

    rows = list(csv.DictReader(io.StringIO(await download("batch-csv"))))
    assert rows[0] == {
        "row": "1", "input": "Hi, “you”", "guarantee": "constrained", "error": "", "output.who.name": "'=cmd",
        "output.who.a\\.b": "1", "output.tags": '["x", "y"]', "output.ok": "true",
    }  # fmt: skip
    assert (rows[1]["input"], rows[1]["error"], rows[1]["output.ok"]) == ("'-", "Too long.", "")
    lines = [json.loads(line) for line in (await download("batch-jsonl")).splitlines()]
    assert lines[0]["output"] == json.loads('{"who": {"name": "=cmd", "a.b": 1}, "tags": ["x", "y"], "ok": true}')
    assert (lines[1]["output"], lines[1]["input"], lines[1]["error"]) == (None, "-", "Too long.")


# On a real server

MAKE = f"""
from django.contrib.auth.models import User
from schemas_app.models import Schema
schema = Schema.objects.create(owner=User.objects.get(), slug="mood", name="Mood")
schema.add_version(text='''{MOOD}''', max_tokens=30)
"""


class Site(Server):
    """A server with the schema, and an eye on its database."""

    def prepare(self):
        done = self.manage("shell", "-v0", "-c", MAKE)
        assert done.returncode == 0, done.stderr
        self.browser = Browser(self.url, ADMIN, PASSWORD)
        return self

    def query(self, sql, *values):
        with closing(sqlite3.connect(self.home / "localllm.sqlite3", timeout=10)) as database, database:
            return database.execute(sql, values).fetchall()

    def begin(self, inputs):
        form = {"schema": "mood", "model": "starter", "kind": "paste", "by": "line", "text": "\n".join(inputs)}
        path = self.browser.post("/schemas/batches/create/", **form)
        return path, path.split("/")[-2].replace("-", "")

    def state(self, job):
        return self.query("SELECT state, num_done, num_failed FROM gateway_job WHERE id = ?", job)[0]

    def until(self, job, is_so):
        end = time.monotonic() + LIMIT_S
        while not is_so(*self.state(job)):
            assert time.monotonic() < end, f"{self.state(job)}\n{self.log}"
            time.sleep(0.02)
        return self.state(job)

    def rows(self, job):
        columns = "number, status, output, error_kind"
        return self.query(f"SELECT {columns} FROM schemas_app_batchrow WHERE batch_id = ? ORDER BY number", job)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("home")) as site:
        yield site.prepare()


def reviews(number):
    return [f"Review {n}: it was fine, I guess." for n in range(1, number + 1)]


def num_at_once(spans):
    """How many of the (begin, end) at most overlapped."""
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def test_a_thousand_rows_run_through_and_use_all_slots(site):
    _, job = site.begin(reviews(1000))
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 1000, 0)
    assert all(json.loads(output).keys() == {"mood", "stars"} for _, _, output, _ in site.rows(job))
    logged = site.query("SELECT created_at, duration_ms, queue_ms, schema_version_id FROM gateway_usagelog "
                        "WHERE source = 'batch'")  # fmt: skip
    ends = [time_of(created_at) for created_at, *_ in logged]
    begins = [end - (duration - queue) / 1000 for end, (_, duration, queue, _) in zip(ends, logged, strict=True)]
    assert len(logged) == 1000 and all(version for *_, version in logged)
    assert num_at_once(list(zip(begins, ends, strict=True))) >= NUM_SLOTS


def time_of(text):
    return datetime.fromisoformat(text).timestamp()


def test_a_chat_is_answered_while_a_batch_runs(site):
    path, job = site.begin(reviews(400))
    site.until(job, lambda state, done, _: done > 10)
    chat = site.browser.new_chat("Who are you?")
    question = "SELECT status FROM chat_message WHERE role = 'assistant' AND conversation_id = ?"
    site.until(job, lambda *_: site.query(question, chat.replace("-", "")) == [("complete",)])
    assert site.state(job)[0] == "running", "The batch was still under way."
    site.browser.post(f"{path}cancel/")


def test_killing_the_server_loses_only_the_rows_in_flight(site):
    _, job = site.begin(reviews(300))
    site.until(job, lambda state, done, _: done > 50)
    site.kill()
    before = {row for row in site.rows(job) if row[1] == "done"}
    assert len(before) == site.state(job)[1] and len(before) < 300
    site.start()
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 300, 0)
    assert before <= set(site.rows(job)), "What was done is not done again."


def test_a_paused_batch_stays_paused_over_a_restart_and_goes_on(site):
    path, job = site.begin(reviews(300))
    site.until(job, lambda state, done, _: done > 20)
    site.browser.post(f"{path}pause/")
    site.stop()
    paused = site.state(job)
    site.start()
    assert site.state(job) == paused and paused[0] == "paused" and paused[1] < 300
    site.browser.post(f"{path}resume/")
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 300, 0)


def test_stopping_the_server_lets_a_batch_go_on_at_the_next_start(site):
    _, job = site.begin(reviews(300))
    site.until(job, lambda state, done, _: done > 20)
    site.stop()
    assert site.state(job)[0] == "running"
    site.start()
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 300, 0)


def test_a_cancelled_batch_keeps_what_is_done(site):
    path, job = site.begin(reviews(300))
    site.until(job, lambda state, done, _: done > 20)
    site.browser.post(f"{path}cancel/")
    assert site.state(job)[0] == "cancelled"
    assert "20" in site.browser.get(f"{path}batch.jsonl")


def test_failed_rows_are_summed_up_and_answered_on_retry(site):
    path, job = site.begin(["Fine. " * 900, "Awful. " * 900, "Good."])
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 1, 2)
    assert [row[3] for row in site.rows(job)] == ["too_long", "too_long", ""]
    assert "2 × The input does not fit the model" in site.browser.get(path).replace("&#x27;", "'")
    failed = site.browser.get(f"{path}?status=failed")
    assert failed.count("Retry</button>") == 2 and 'value="&amp;status' not in failed  # the search of chats is empty
    site.query("UPDATE schemas_app_batchrow SET input = 'Fine.' WHERE batch_id = ?", job)
    site.browser.post(f"{path}retry/", number="2")
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 2, 1)
    site.browser.post(f"{path}retry/")
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 3, 0)


def test_a_deleted_batch_ends(site):
    path, job = site.begin(reviews(300))
    site.until(job, lambda state, done, _: done > 5)
    assert site.browser.post(f"{path}delete/") == "/schemas/batches/"
    assert site.query("SELECT 1 FROM schemas_app_batchrow WHERE batch_id = ?", job) == []
    _, other = site.begin(reviews(1))
    site.until(other, lambda state, *_: state == "complete")


def test_a_model_that_does_not_answer_stops_the_batch_with_the_reason(site):
    (path,) = site.query("SELECT path FROM gateway_languagemodel")[0]
    site.query("UPDATE gateway_languagemodel SET path = '/nowhere.gguf'")
    page, job = site.begin(reviews(100))
    _, num_done, num_failed = site.until(job, lambda state, *_: state == "failed")
    assert num_done == 0 and num_failed < 20
    assert "The file of this model is gone" in site.browser.get(page)
    site.query("UPDATE gateway_languagemodel SET path = ?", path)
    site.browser.post(f"{page}retry/")
    assert site.until(job, lambda state, *_: state == "complete") == ("complete", 100, 0)
