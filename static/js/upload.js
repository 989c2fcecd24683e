/* Sends a file in chunks and goes on where the server stands: after a pause, a lost network, a reload, a restart.
   The server's side is gateway/pages/uploads.py; the list below the form is its own. */

const LONGEST_WAIT_S = 30;

const form = document.querySelector("[data-upload]");
const sending = document.querySelector("[data-sending]");
const pause = sending.querySelector("[data-pause]");
const headers = JSON.parse(document.body.getAttribute("hx-headers"));
let isPaused = false;

class Refused extends Error {}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = form.querySelector("input").files[0];
  const button = form.querySelector("button");
  button.disabled = true;
  isPaused = false;
  try {
    await send(file);
  } catch (error) {
    say(error.message, true);
  }
  button.disabled = false;
  pause.hidden = true;
});

pause.addEventListener("click", () => {
  isPaused = true;
});

async function send(file) {
  show(file, 0);
  const told = { name: file.name, size: file.size, modified: file.lastModified };
  const upload = await ask(form.action, new URLSearchParams(told));
  const address = `${form.action}${upload.id}/chunk/`;
  const size = Number(form.dataset.chunkBytes);
  document.getElementById(`upload-${upload.id}`)?.remove(); // while it is sent it is shown above
  let offset = upload.num_bytes;
  while (offset < file.size && !isPaused) {
    show(file, offset);
    const answer = await ask(`${address}?offset=${offset}`, file.slice(offset, offset + size));
    offset = answer.num_bytes;
  }
  show(file, offset);
  if (!isPaused) sending.hidden = true;
  else say("Paused. To go on, press Upload again.");
  refresh();
}

/* The answer to a POST; a server that is not there is asked again. 409 says where to go on. */
async function ask(address, body) {
  for (let wait = 1; ; wait = Math.min(2 * wait, LONGEST_WAIT_S)) {
    const response = await fetch(address, { method: "POST", headers, body, redirect: "manual" }).catch(() => null);
    if (response && response.status < 500) return read(response);
    say(`The server cannot be reached. Trying again in ${wait} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
    if (isPaused) throw new Refused("Paused. To go on, press Upload again.");
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

function show(file, offset) {
  sending.hidden = pause.hidden = false;
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

function amount(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function refresh() {
  htmx.ajax("GET", document.getElementById("uploads").dataset.list, { target: "#uploads", swap: "outerHTML" });
}
