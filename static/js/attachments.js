/* Files in the composer: picked, dropped or pasted, uploaded at once, shown as chips until they are sent.

   The server makes the chips, with what a file holds and the ways it can be sent. What was uploaded and not
   sent comes back when the page is loaded again. */

const byId = (id) => document.getElementById(id);
const composer = byId("composer");
const list = byId("files");
const MAX_BYTES = 10 << 20; // what the server takes
const LONG_CHARS = 4_000; // of a paste

let numUploading = 0;

const ids = () => [...list.querySelectorAll("[data-file]")].map((chip) => chip.dataset.file);
function keep() {
  localStorage.setItem(list.dataset.key, JSON.stringify(ids()));
  htmx.trigger(document.body, "recount");
}

/* Where the files are to be sent, so that the server can tell what fits there. */
function place() {
  const form = new FormData(composer);
  form.set("conversation", composer.dataset.conversation ?? "");
  return form;
}

function waiting(name) {
  const chip = document.createElement("li");
  chip.className = "file-chip is-waiting";
  chip.innerHTML = '<span class="dots" aria-hidden="true"><i></i><i></i><i></i></span><span class="file-about"><bdi></bdi></span>';
  chip.querySelector("bdi").textContent = name;
  chip.setAttribute("role", "status");
  list.append(chip);
  return chip;
}

function show(chip, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  chip.replaceWith(template.content.firstElementChild);
  keep();
}

function refuse(chip, reason) {
  chip.className = "file-chip is-problem";
  chip.setAttribute("role", "alert");
  chip.querySelector(".dots").remove();
  const text = document.createElement("p");
  text.textContent = reason;
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "button", textContent: "OK" });
  button.dataset.remove = "";
  chip.append(text, button);
}

async function upload(file) {
  const chip = waiting(file.name);
  if (file.size > MAX_BYTES) {
    return refuse(chip, `The file has ${(file.size / 1e6).toFixed(1)} MB; ${(MAX_BYTES / 1e6).toFixed(1)} MB at most are taken. Divide it.`);
  }
  const form = place();
  form.set("upload", file);
  numUploading += 1;
  const response = await fetch(list.dataset.url, { method: "POST", body: form }).catch(() => null);
  numUploading -= 1;
  const text = (await response?.text().catch(() => "")) ?? "";
  if (response?.ok) show(chip, text);
  else if (response?.status === 422) refuse(chip, text);
  else refuse(chip, "The file could not be sent. Is the server running? Try again.");
}

/* One after the other: how much of a file fits depends on those before it. */
let queue = Promise.resolve();
function attach(files) {
  for (const file of files) queue = queue.then(() => upload(file));
  byId("composer-text").focus();
}

/* A long paste stays in the box; it may become a file instead. */
function offer(text) {
  const chip = document.createElement("li");
  chip.className = "file-chip is-waiting";
  chip.innerHTML = '<span class="file-about">That is a long text.</span><button type="button" class="button">Attach it as a file</button>';
  chip.querySelector("button").addEventListener("click", () => {
    const box = byId("composer-text");
    box.value = box.value.replace(text.replaceAll("\r\n", "\n"), "");
    box.dispatchEvent(new Event("input"));
    chip.remove();
    attach([new File([text], "Pasted text.txt", { type: "text/plain" })]);
  });
  list.append(chip);
}

async function restore() {
  for (const id of JSON.parse(localStorage.getItem(list.dataset.key) ?? "[]")) {
    const query = new URLSearchParams(place());
    query.delete("csrfmiddlewaretoken");
    query.delete("text");
    const response = await fetch(`${list.dataset.url}${id}/chip?${query}`).catch(() => null);
    if (response?.ok) show(list.appendChild(document.createElement("li")), await response.text());
  }
  keep();
}

function clear() {
  list.replaceChildren();
  keep();
}

if (composer) {
  queue = queue.then(restore);
  byId("attach-button").addEventListener("click", () => byId("file-picker").click());
  byId("file-picker").addEventListener("change", (event) => {
    attach([...event.target.files]);
    event.target.value = "";
  });
  composer.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text");
    if (text.length > LONG_CHARS) offer(text);
    if (text || !event.clipboardData.files.length) return;
    event.preventDefault();
    attach([...event.clipboardData.files]);
  });
  list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-remove]");
    if (!button) return;
    if (button.dataset.remove) fetch(button.dataset.remove, { method: "POST", body: new FormData(composer) });
    button.closest(".file-chip").remove();
    keep();
    byId("composer-text").focus();
  });
  composer.addEventListener("sent", clear);
  composer.addEventListener("submit", (event) => {
    if (numUploading) {
      event.preventDefault();
      event.stopImmediatePropagation();
    } else if (!composer.dataset.conversation) localStorage.removeItem(list.dataset.key);
  }, { capture: true });

  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    composer.classList.add("is-dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || composer.classList.remove("is-dropping"));
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    composer.classList.remove("is-dropping");
    attach([...event.dataTransfer.files]);
  });
}
