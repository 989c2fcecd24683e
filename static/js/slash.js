/* Commands and prompts in the composer: `/` at the beginning lists them, the arrows and Enter choose one, Esc closes
   the list. Commands stand in the page and are chat.js's to carry out; prompts, the form for their variables and the
   text with them in it come from the server. What is neither is sent as it was written. */

const byId = (id) => document.getElementById(id);
const composer = byId("composer");
const box = byId("composer-text");
const list = byId("prompts");
const prompts = list?.querySelector("[data-prompts]");
let numFetches = 0;
const ROOM_FOR_HINT = 280; // pixels: on a phone it would be cut off

const options = () => [...list.querySelectorAll("[role=option]:not([hidden])")];
const current = () => list.querySelector("[aria-selected=true]");
const isOpen = () => list.matches(":popover-open");

async function look() {
  const typed = /^\/([\w-]*)$/.exec(box.value);
  if (!typed) return close();
  const mine = ++numFetches;
  const query = new URLSearchParams({ q: typed[1], model: list.dataset.model });
  const response = await fetch(`${list.dataset.url}?${query}`).catch(() => null);
  if (!response?.ok || mine !== numFetches) return;
  prompts.innerHTML = await response.text();
  for (const command of list.querySelectorAll("[data-command]")) {
    command.hidden = !command.dataset.command.startsWith(box.value);
  }
  prompts.hidden = !prompts.querySelector("[role=option]") && options().length > 0; // a command was found
  list.showPopover();
  box.setAttribute("aria-expanded", "true");
  mark(options()[0]);
}

function close() {
  numFetches++; // what is on its way comes too late
  if (isOpen()) list.hidePopover();
  box.setAttribute("aria-expanded", "false");
  box.removeAttribute("aria-activedescendant");
}

function mark(option) {
  current()?.removeAttribute("aria-selected");
  option?.setAttribute("aria-selected", "true");
  option?.scrollIntoView({ block: "nearest" });
  if (option) box.setAttribute("aria-activedescendant", option.id);
}

async function choose({ dataset }) {
  close();
  if (dataset.command) {
    box.value = dataset.command;
    return composer.requestSubmit();
  }
  const response = await fetch(dataset.url);
  if (!response.ok) return;
  const dialog = byId("dialog");
  dialog.innerHTML = await response.text();
  const form = dialog.querySelector("[data-insert]");
  if (form.querySelector("textarea")) dialog.showModal();
  else insert(form);
}

async function insert(form) {
  const headers = { "X-CSRFToken": composer.elements.csrfmiddlewaretoken.value };
  const response = await fetch(form.action, { method: "POST", body: new FormData(form), headers });
  const text = await response.text();
  if (!response.ok) {
    const problem = form.querySelector("[role=alert]");
    problem.textContent = response.status === 400 ? text : "That did not work. Is the server running?";
    problem.hidden = false;
    return;
  }
  byId("dialog").close();
  box.value = text;
  box.dispatchEvent(new Event("input"));
  box.focus();
}

if (box) {
  if (box.clientWidth > ROOM_FOR_HINT) box.placeholder += ", or / for a prompt";
  box.addEventListener("input", look);
  box.addEventListener("blur", () => setTimeout(() => list.contains(document.activeElement) || close(), 150));
  // Before the keys mean anything else: Enter would send, and the arrow up would edit the last message.
  box.addEventListener(
    "keydown",
    (event) => {
      if (!isOpen() || event.isComposing || event.shiftKey) return;
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const chosen = ["Enter", "Tab"].includes(event.key) && current();
      if (!step && !chosen && event.key !== "Escape") return;
      event.preventDefault();
      event.stopImmediatePropagation();
      if (step) mark(options().at((options().indexOf(current()) + step) % options().length));
      else if (chosen) choose(chosen);
      else close();
    },
    true,
  );
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(option);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-insert]")) return;
    event.preventDefault();
    insert(event.target);
  });
}
