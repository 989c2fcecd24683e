"""Files in the composer as a person has them: dropped, picked, refused, sent, cited; and chats in and out."""

import json
import re
import sqlite3
from contextlib import closing

from playwright.sync_api import expect

from tests.browser.conftest import SHOTS
from tests.browser.test_chat import send, wait_until_answered
from tests.chat.exports import chatgpt

TOWNS = "\n\n".join(f"Town number {n} was founded in {1000 + n}. " + "It has a church. " * 40 for n in range(60))
DROP = """([name, text]) => {
  const files = new DataTransfer();
  files.items.add(new File([text], name, { type: "text/plain" }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
}"""

PASTE = """(text) => {
  const data = new DataTransfer();
  data.setData("text/plain", text);
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
  if (!event.defaultPrevented) document.execCommand("insertText", false, text);
}"""

PASTE_FILE = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, { type: "text/csv" }));
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
  return event.defaultPrevented;
}"""


def pick(page, name, data):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach files").click()
    chooser.value.set_files([{"name": name, "mimeType": "", "buffer": data}])


def ask(page, text):
    send(page, text)
    wait_until_answered(page)


def cite(site, answer_id):
    """The starter model cites nothing by itself."""
    with closing(sqlite3.connect(site.home / "localllm.sqlite3")) as database, database:
        id = answer_id.removeprefix("m-").replace("-", "")
        database.execute("UPDATE chat_message SET text='In 1042 [1].', html='<p>In 1042 [1].</p>' WHERE id=?", (id,))


def test_a_dropped_file_is_sent_and_a_citation_opens_its_passage(page, site):
    page.evaluate(DROP, ["towns.txt", TOWNS])
    chip = page.locator(".file-chip[data-file]")
    expect(chip).to_contain_text("tokens")
    expect(chip.get_by_role("combobox")).to_contain_text("cut after")
    page.screenshot(path=SHOTS / "attachment.png")
    ask(page, "When was town number 42 founded?")
    expect(page.locator(".file-chip")).to_have_count(0)
    expect(page.locator(".sent-files")).to_contain_text(re.compile(r"\d passages"))
    cite(site, page.locator(".message.assistant").last.get_attribute("id"))
    page.reload()
    page.get_by_role("link", name="[1]").click()
    expect(page.locator("#dialog mark")).to_contain_text("Town number")
    page.screenshot(path=SHOTS / "citation.png")
    page.keyboard.press("Escape")
    expect(page.locator("#dialog")).not_to_be_visible()


def test_a_picked_file_stays_over_a_reload_and_can_be_removed(page):
    pick(page, "notes.md", b"The mill was built in 1887.")
    expect(page.locator(".file-chip[data-file]")).to_have_count(1)
    page.reload()
    page.get_by_role("button", name="Remove notes.md").click()
    expect(page.locator(".file-chip")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("button", name="Attach files")).to_be_visible()
    expect(page.locator(".file-chip")).to_have_count(0)


def test_a_long_paste_may_become_a_file(page):
    page.get_by_label("Message", exact=True).focus()
    page.evaluate(PASTE, "A long story. " * 400)
    page.get_by_role("button", name="Attach it as a file").click()
    expect(page.locator(".file-chip[data-file]")).to_contain_text("Pasted text.txt")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    page.get_by_role("button", name="Remove Pasted text.txt").click()
    expect(page.locator(".file-chip")).to_have_count(0)


def test_a_file_is_pasted_from_the_clipboard_and_sent(page):
    page.get_by_label("Message", exact=True).focus()
    assert page.evaluate(PASTE_FILE, ["towns.csv", "town,founded\nUppsala,1286\n"])
    expect(page.locator(".file-chip[data-file]")).to_contain_text("towns.csv")
    ask(page, "When was it founded?")
    expect(page.locator(".sent-files")).to_contain_text("towns.csv")


def test_a_second_message_takes_files_too_and_one_that_cannot_be_read_says_why(page, complaints):
    ask(page, "Hello")
    pick(page, "report.txt", b"MZ\x90\x00" + bytes(1000))
    expect(page.locator(".file-chip.is-problem")).to_contain_text("This is a program")
    page.get_by_role("button", name="OK", exact=True).click()
    pick(page, "notes.md", b"The mill was built in 1887.")
    expect(page.locator(".file-chip[data-file]")).to_have_count(1)
    ask(page, "When was the mill built?")
    page.get_by_role("link", name="notes.md").click()
    expect(page.locator("#dialog")).to_contain_text("The mill was built in 1887.")
    assert [text for text in complaints if "422" not in text] == []
    complaints.clear()


def test_a_thumb_is_given_with_a_note_by_keyboard(page):
    ask(page, "Hello")
    page.get_by_role("button", name="Bad answer").press("Enter")
    expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Note").fill("Too short.")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Note")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("title", "Bad answer: Too short.")


def test_chats_of_chatgpt_come_in_and_go_out(page, site, tmp_path):
    (tmp_path / "conversations.json").write_text(json.dumps([chatgpt("1"), chatgpt("2")]))
    page.get_by_role("button", name=re.compile("maya")).click()
    page.get_by_role("link", name="Import and export").click()
    page.get_by_label("Export file").set_input_files(tmp_path / "conversations.json")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator("#imports")).to_contain_text("2 chats added", timeout=15_000)
    page.screenshot(path=SHOTS / "import.png")
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON", exact=True).click()
    titles = [each.get("title") for each in json.loads(download.value.path().read_text())["conversations"]]
    assert titles.count("Geography <b>") == 2
