"""The chat as a person has it: a real browser on a real server with the starter model."""

import re

from playwright.sync_api import expect

from tests.browser.conftest import NAME, PASSWORD, SHOTS
from tests.browser_client import Browser


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/chat/"))


def answers(page):
    return page.locator(".message.assistant")


def wait_until_answered(page):
    expect(page.locator(".is-pending")).to_have_count(0)  # what was sent is on the page, and its answer with it
    expect(page.locator("[data-live]")).to_have_count(0, timeout=60_000)
    expect(page.locator("#send")).to_be_visible()


def written(page):
    return answers(page).last.locator("[data-closed], [data-tail]").all_inner_texts()


def wait_for_text(page, more_than=0, between=lambda: None):
    for _ in range(500):
        if len("".join(written(page))) > more_than:
            return
        between()
        page.wait_for_timeout(60)
    raise AssertionError(f"The answer did not grow over {more_than} characters.")


def settled(page):
    """What is written once the last of it has come; the engine must stand still."""
    before, now = None, written(page)
    while now != before:
        page.wait_for_timeout(300)
        before, now = now, written(page)
    return now


def wait_until_written(page, texts):
    for _ in range(300):
        if written(page) == texts:
            return
        page.wait_for_timeout(60)
    assert written(page) == texts


def begin_long_answer(page, site):
    """A chat whose second answer has begun, and stands still."""
    send(page, "Hello")
    wait_until_answered(page)
    site.make_chats_ramble()
    site.pause()
    send(page, "Go on.")
    expect(answers(page)).to_have_count(2)
    wait_for_text(page, between=site.run_for_a_moment)


def test_it_answers_from_the_first_page_on(page):
    page.screenshot(path=SHOTS / "new-chat.png")
    page.get_by_role("button", name="Who are you?").click()
    wait_until_answered(page)
    assert len(answers(page).inner_text()) > 20
    expect(page.locator(".stats")).to_contain_text("tokens")
    expect(page.get_by_role("navigation")).to_contain_text("Who are you?")


def test_it_shows_the_text_as_it_is_written(page, site):
    begin_long_answer(page, site)
    early = len("".join(written(page)))
    page.screenshot(path=SHOTS / "streaming.png")
    wait_for_text(page, more_than=early, between=site.run_for_a_moment)
    expect(page.locator("[data-live]")).to_have_count(1)
    site.go_on()
    wait_until_answered(page)


def test_it_goes_on_after_a_reload_with_nothing_lost_or_doubled(page, site):
    begin_long_answer(page, site)
    before = settled(page)
    page.reload()
    wait_until_written(page, before)
    expect(page.locator("[data-live]")).to_have_count(1)
    wait_for_text(page, more_than=len("".join(before)), between=site.run_for_a_moment)
    site.go_on()
    wait_until_answered(page)


def test_it_shows_the_same_stream_in_a_second_tab(page, site):
    begin_long_answer(page, site)
    second = page.context.new_page()
    second.goto(page.url)
    wait_for_text(second, more_than=len("".join(written(page))), between=site.run_for_a_moment)
    wait_until_written(second, settled(page))
    site.go_on()
    wait_until_answered(page)
    wait_until_answered(second)
    assert written(second) == written(page)


def test_it_shows_what_another_tab_asks(page):
    send(page, "Hello")
    wait_until_answered(page)
    second = page.context.new_page()
    second.goto(page.url)
    send(second, "Who are you?")
    expect(page.locator(".bubble").last).to_have_text("Who are you?")
    expect(answers(page)).to_have_count(2)
    wait_until_answered(page)


def test_it_keeps_what_was_written_in_a_chat_that_another_tab_deletes(page):
    send(page, "A chat that goes")
    wait_until_answered(page)
    second = page.context.new_page()
    second.goto(page.url)
    open_menu(page, "A chat that goes")
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="What is on your mind")).to_be_visible()
    second.get_by_label("Message", exact=True).fill("Words of mine")
    second.keyboard.press("Enter")
    expect(second.get_by_role("heading", name="What is on your mind")).to_be_visible()
    expect(second.get_by_label("Message", exact=True)).to_have_value("Words of mine")
    second.get_by_label("Message", exact=True).fill("")


NUM_SLOTS = 4  # of a model, unless its row says otherwise
STAGES = """() => {
  window.stages = [];
  const look = () => window.stages.push(document.querySelector("[data-live] [data-stage-text]")?.textContent);
  new MutationObserver(look).observe(document.getElementById("messages"), { childList: true, subtree: true });
}"""


def test_it_says_what_an_answer_waits_for(page, site):
    send(page, "Hello")
    wait_until_answered(page)
    page.evaluate(STAGES)
    site.pause()
    others = Browser(site.url, NAME, PASSWORD)
    for _ in range(NUM_SLOTS):
        others.new_chat("Who are you?")
    send(page, "Tell me all about tokens. " * 100)
    expect(answers(page)).to_have_count(2)
    stage = page.locator("[data-stage-text]")
    while not stage.inner_text():
        site.run_for_a_moment()
        page.wait_for_timeout(60)
    expect(stage).to_have_text(re.compile(r"^Place 1 in the queue(, about \d+ s)?$"))  # not a wait under 0.1 s
    page.screenshot(path=SHOTS / "queue.png")
    site.go_on()
    wait_until_answered(page)
    assert any(re.fullmatch(r"Reading the prompt \d+ %", text or "") for text in page.evaluate("window.stages"))


def test_it_stops_an_answer_and_keeps_its_text(page, site):
    begin_long_answer(page, site)
    page.get_by_role("button", name="Stop the answer").click()
    expect(answers(page).last).to_contain_text("You stopped this answer.")
    site.go_on()
    assert "".join(written(page))
    expect(page.get_by_role("button", name="Continue")).to_be_visible()


def test_it_says_that_an_answer_is_still_being_written(page, site):
    begin_long_answer(page, site)
    box = page.get_by_label("Message", exact=True)
    box.fill("And another thing")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("still being written")
    expect(box).to_have_value("And another thing")
    page.keyboard.press("Escape")
    expect(page.locator("#problem")).to_be_hidden()
    site.go_on()


def test_it_edits_a_message_into_a_branch(page):
    send(page, "Who are you?")
    wait_until_answered(page)
    page.get_by_role("button", name="Edit").click()
    editor = page.get_by_label("Edit your message")
    expect(editor).to_have_value("Who are you?")
    assert editor.bounding_box()["width"] > 300
    editor.fill("What can you do?")
    page.keyboard.press("Enter")
    expect(page.locator(".user .versions")).to_contain_text("2/2")
    wait_until_answered(page)
    page.screenshot(path=SHOTS / "branch.png")
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".bubble")).to_have_text("Who are you?")
    expect(page.locator(".user .versions")).to_contain_text("1/2")


def test_the_count_of_tokens_is_that_of_the_branch_that_is_chosen(page):
    send(page, "Who are you?")
    wait_until_answered(page)
    expect(page.locator("#ledger")).to_contain_text("of 1024 tokens")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("What can you do? " * 20)
    page.keyboard.press("Enter")
    expect(page.locator(".user .versions")).to_contain_text("2/2")
    wait_until_answered(page)
    expect(page.locator("#ledger")).to_contain_text(re.compile(r"^\s*[1-9]\d\d of"))
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("#ledger")).to_contain_text(re.compile(r"^\s*\d\d of"))


def test_it_follows_the_text_however_fast_it_comes(page):
    send(page, "Hello")
    wait_until_answered(page)
    page.evaluate("""() => new Promise((done) => {
      const place = document.querySelector("#messages article:last-child [data-closed]");
      let left = 100;
      const timer = setInterval(() => {
        place.append(document.createElement("p"), "A line.");
        if (!--left) { clearInterval(timer); done(); }
      }, 5);
    })""")
    expect(page.locator("#to-latest")).to_be_hidden()
    expect(page.locator(".message").last.get_by_role("button", name="Copy")).to_be_in_viewport()


def test_it_writes_an_answer_again_beside_the_first(page):
    send(page, "Who are you?")
    wait_until_answered(page)
    page.get_by_role("button", name="Write it again").click()
    expect(page.locator(".assistant .versions")).to_contain_text("2/2")
    wait_until_answered(page)


# A socket that can be made to look as while it opens
SLOW_SOCKET = """window.WebSocket = class extends WebSocket {
    constructor(...args) { super(...args); window.socket = this; }
    get readyState() { return window.isSlow ? WebSocket.CONNECTING : super.readyState; }
}"""


def test_a_command_given_while_the_socket_is_closed_is_sent_when_it_opens(page):
    page.add_init_script(SLOW_SOCKET)
    send(page, "What is a slot?")
    wait_until_answered(page)
    page.evaluate("window.isSlow = true")
    page.get_by_role("button", name="Write it again").click()
    page.evaluate("window.isSlow = false; window.socket.close()")
    expect(page.locator(".assistant .versions")).to_contain_text("2/2")


def open_menu(page, title):
    item = page.locator(".chat-item", has_text=title)
    item.hover()
    item.get_by_role("button").click()


def test_it_finds_renames_and_deletes_by_keyboard_and_menu(page):
    send(page, "Where do walnuts grow?")
    wait_until_answered(page)
    open_menu(page, "walnuts")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Name").fill("Nuts")
    page.keyboard.press("Enter")
    expect(page).to_have_title("Nuts · LocalLLM")
    page.keyboard.press("Control+k")
    page.keyboard.type("walnu")
    expect(page.locator(".hits mark").first).to_have_text("walnuts")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    open_menu(page, "Nuts")
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="What is on your mind")).to_be_visible()
    expect(page.get_by_role("link", name="Nuts")).to_have_count(0)


def test_it_moves_a_chat_into_a_folder_that_can_be_renamed(page):
    send(page, "Pack for the ferry")
    wait_until_answered(page)
    open_menu(page, "ferry")
    page.get_by_role("link", name="Move to folder…").click()
    page.get_by_role("combobox", name="Folder").fill("Trips")
    page.keyboard.press("Enter")
    folder = page.locator(".folder", has_text="Trips")
    expect(folder.get_by_role("link", name="Pack for the ferry")).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="Pack for the ferry")).to_have_count(1)
    folder.get_by_role("link", name="Rename folder Trips").click()
    page.get_by_role("combobox", name="Folder").fill("Sweden")
    page.keyboard.press("Enter")
    sweden = page.locator(".folder", has_text="Sweden").get_by_role("link", name="Pack for the ferry")
    expect(sweden).to_be_visible()
    expect(page.locator(".folder")).to_have_count(1)


def test_a_form_stays_open_when_an_answer_ends_meanwhile(page, site):
    begin_long_answer(page, site)
    item = page.locator(".chat-item", has=page.locator("[aria-current]"))
    item.hover()
    item.get_by_role("button").click()
    page.get_by_role("link", name="Move to folder…").click()
    page.get_by_role("combobox", name="Folder").fill("Half a na")
    site.go_on()
    wait_until_answered(page)
    expect(page.get_by_role("combobox", name="Folder")).to_have_value("Half a na")


def test_a_chat_is_moved_without_a_script(page, open_page):
    send(page, "Mow the lawn")
    wait_until_answered(page)
    plain = open_page(java_script_enabled=False)
    plain.goto(page.url)
    plain.get_by_role("link", name="Move to folder…").click()
    plain.get_by_role("combobox", name="Folder").fill("Garden")
    plain.get_by_role("button", name="Move", exact=True).click()
    expect(plain.locator(".folder", has_text="Garden").get_by_role("link", name="Mow the lawn")).to_be_visible()


def test_a_folder_stays_open_or_closed_as_it_was_left(page):
    send(page, "Buy a tent")
    wait_until_answered(page)
    open_menu(page, "Buy a tent")
    page.get_by_role("link", name="Move to folder…").click()
    page.get_by_role("combobox", name="Folder").fill("Shopping")
    page.keyboard.press("Enter")
    tent = page.get_by_role("link", name="Buy a tent")
    expect(tent).to_be_visible()
    page.get_by_role("link", name="New chat").first.click()
    expect(tent).to_be_hidden()
    page.locator(".folder summary", has_text="Shopping").press("Enter")
    expect(tent).to_be_visible()
    page.reload()
    expect(tent).to_be_visible()


def test_it_keeps_a_draft_and_shows_the_shortcuts(page):
    page.get_by_label("Message", exact=True).fill("half a thought")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")
    page.get_by_label("Message", exact=True).fill("")
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.screenshot(path=SHOTS / "shortcuts.png")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_hidden()


# Each line that is announced, for the announcer keeps only the last ones.
LISTEN = """() => {
  window.announced = [];
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) window.announced.push(...[...addedNodes].map((line) => line.textContent));
  }).observe(document.getElementById("announcer"), { childList: true });
}"""


def test_it_tells_whole_sentences_to_a_screen_reader(page, site):
    send(page, "Hello")
    wait_until_answered(page)
    page.evaluate(LISTEN)
    site.pause()
    send(page, "What is LocalLLM?")
    expect(answers(page)).to_have_count(2)
    wait_for_text(page, between=site.run_for_a_moment)  # it comes in pieces
    site.go_on()
    wait_until_answered(page)
    *said, end = page.evaluate("window.announced")
    assert end == "Answer complete."
    assert "".join("".join(said).split()) == "".join("".join(written(page)).split())
    assert all(re.search(r"[.!?…:]$", sentence) for sentence in said[:-1])


def test_it_is_dark_when_asked_and_stays_so(page):
    page.get_by_role("button", name=NAME, exact=True).click()
    page.get_by_text("Dark", exact=True).locator("..").click()
    page.reload()
    page.screenshot(path=SHOTS / "dark.png")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(24, 25, 27)"


def test_it_fits_a_phone(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    expect(page.get_by_placeholder("Write a message", exact=True)).to_be_visible()  # its hint would take two lines
    send(page, "What can you do?")
    wait_until_answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=SHOTS / "phone.png")
    page.get_by_role("button", name="Show the sidebar").click()
    expect(page.get_by_role("link", name="New chat")).to_be_in_viewport()
