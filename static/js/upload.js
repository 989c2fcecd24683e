/* Sends a file in chunks and goes on where the server stands: after a pause, a lost network, a reload, a restart.
   The server's side is gateway/pages/uploads.py; the list below the form is its own. */

const LONGEST_WAIT_S = 30;

const form = document.querySelector("[data-upload]");
const sending = document.querySelector("[data-sending]");
const upload = form.querySelector("button");
const progress = sending.querySelector("[data-progress]");
const pause = sending.querySelector("[data-pause]");
const cancel = sending.querySelector("[data-cancel]");
const headers = JSON.parse(document.body.getAttribute("hx-headers"));
let file = null; // what is being sent, or paused
let id = ""; // of its upload, once the server knows it
let wish = ""; // "pause" or "cancel": heard between two chunks

class Refused extends Error {}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  file = form.querySelector("input").files[0];
  begin();
});

pause.addEventListener("click", () => {
  if (upload.disabled) wish = "pause";
  else begin();
});

cancel.addEventListener("click", () => {
  if (upload.disabled) wish = "cancel";
  else discard();
});

document.addEventListener("htmx:afterSwap", hideRow);

async function begin() {
  upload.disabled = true;
  wish = id = "";
  try {
    await send();
  } catch (error) {
    say(error.message, true);
    progress.hidden = true;
  }
  upload.disabled = false;
}

async function send() {
  pause.textContent = "Pause";
  say("");
  show(0);
  const told = { name: file.name, size: file.size, modified: file.lastModified };
  const known = await ask(form.action, new URLSearchParams(told));
  id = known.id ?? "";
  hideRow();
  let offset = known.num_bytes ?? 0;
  const size = Number(form.dataset.chunkBytes);
  while (offset < file.size && !wish) {
    show(offset);
    const answer = await ask(`${form.action}${id}/chunk/?offset=${offset}`, file.slice(offset, offset + size));
    offset = answer.num_bytes ?? offset;
  }
  show(offset);
  if (wish === "cancel") return discard();
  if (offset < file.size) {
    say("Paused.");
    pause.textContent = "Go on";
    return;
  }
  sending.hidden = true;
  refresh("GET");
}

function discard() {
  sending.hidden = true;
  if (id) refresh("POST", `${form.action}${id}/cancel/`);
}

/* While it is sent it is shown above the list, and not in it. */
function hideRow() {
  if (!sending.hidden) document.getElementById(`upload-${id}`)?.remove();
}

/* The answer to a POST; a server that is not there is asked again, until there is a wish: then {}.
   409 says where to go on. */
async function ask(address, body) {
  for (let wait = 1; ; wait = Math.min(2 * wait, LONGEST_WAIT_S)) {
    const response = await fetch(address, { method: "POST", headers, body, redirect: "manual" }).catch(() => null);
    if (response && response.status < 500) return read(response);
    say(`The server cannot be reached. Trying again in ${wait} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    if (wish) return {};
  }
}

async function read(response) {
  say("");
  if (response.type === "opaqueredirect") throw new Refused("You are signed out. Sign in, then choose the file again.");
  const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
  const body = isJson ? await response.json() : { error: `The server answered ${response.status}. Reload the page.` };
  if (!response.ok && response.status !== 409) throw new Refused(body.error);
  return body;
}

function show(offset) {
  sending.hidden = progress.hidden = false;
  sending.querySelector("[data-name]").textContent = file.name;
  sending.querySelector("progress").value = offset / file.size;
  sending.querySelector("[data-count]").textContent = `${amount(offset)} of ${amount(file.size)}`;
}

function say(text, isProblem = false) {
  const said = sending.querySelector("[data-said]");
  said.textContent = text;
  said.hidden = !text;
  said.classList.toggle("problem", isProblem);
}

/* As amounts.size() of the server has it. */
function amount(bytes) {
  if (bytes >= 999.5e6) return `${(bytes / 1e9).toFixed(1)} GB`;
  if (bytes >= 10e6) return `${(bytes / 1e6).toFixed(0)} MB`;
  return bytes >= 0.1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(0)} kB`;
}

function refresh(verb, address = document.getElementById("uploads").dataset.list) {
  htmx.ajax(verb, address, { target: "#uploads", swap: "outerHTML" });
}
