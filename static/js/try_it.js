/* Trying a schema: the stream of each result into its place, and values shown where the text says them.
   What the server sends is described in schemas_app/try_it.py. */

const panel = document.querySelector(".try-it");
const form = panel.querySelector("form");
const results = panel.querySelector("[data-results]");
let running = null; // what stops the run under way

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const own = (running = new AbortController());
  const versions = new Set([form.elements.version.value, form.elements.beside?.value].filter(Boolean));
  results.replaceChildren();
  showRunning(true);
  await Promise.all([...versions].map((version) => run(version, own.signal)));
  if (running === own) showRunning(false);
});

panel.querySelector("[data-stop]").addEventListener("click", () => running?.abort());

function showRunning(isRunning) {
  const [start, stop] = form.querySelectorAll("[data-run], [data-stop]");
  const hadFocus = [start, stop].includes(document.activeElement);
  start.hidden = isRunning;
  stop.hidden = !isRunning;
  if (hadFocus) (isRunning ? stop : start).focus();
}

async function run(version, signal) {
  const article = panel.querySelector("template[data-result]").content.firstElementChild.cloneNode(true);
  const stage = article.querySelector("[data-stage]");
  results.append(article);
  article.toggleAttribute("data-busy", true);
  const said = new FormData(form);
  said.set("version", version);
  try {
    const response = await fetch(form.action, { method: "POST", body: said, signal });
    for await (const body of bodies(response)) show(body, article, stage);
  } catch (error) {
    stage.textContent = signal.aborted ? "Stopped. Nothing is kept of it." : error.message;
    stage.classList.toggle("is-problem", !signal.aborted);
  }
  article.removeAttribute("data-busy");
}

function show(body, article, stage) {
  if (stage.textContent !== body.stage) stage.textContent = body.stage;
  if (body.html) article.querySelector("[data-body]").innerHTML = body.html;
  if (body.entry) {
    stage.parentElement.classList.add("hidden");
    makeReachable(article);
    const entries = panel.querySelector("[data-entries]");
    entries.insertAdjacentHTML("afterbegin", body.entry);
    htmx.process(entries.firstElementChild);
    htmx.process(article);
  }
}

/* The bodies of the events until [DONE]; throws what went wrong in words. */
async function* bodies(response) {
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw new Error(await problemOf(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the result. Run it again.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const data of events.filter((event) => event.startsWith("data: ")).map((event) => event.slice(6))) {
      if (data === "[DONE]") return;
      const body = JSON.parse(data);
      if (body.error) throw new Error(body.error.message);
      yield body;
    }
  }
}

async function problemOf(response) {
  if (response.redirected) return "You are signed out. Reload the page to sign in again.";
  const body = await response.json().catch(() => null);
  return body?.error.message ?? `The server answered ${response.status}. Reload the page.`;
}

// A value shows how sure the model was of it, and where the text says it.

function makeReachable(element) {
  for (const value of element.querySelectorAll(".value[data-probability], .value[data-span]")) value.tabIndex = 0;
}

function explain(event) {
  const value = event.target.closest(".data-view .value[data-path]");
  const out = value?.closest("[data-try-out]");
  if (!out || value.classList.contains("is-explained")) return;
  out.querySelector(".is-explained")?.classList.remove("is-explained");
  value.classList.add("is-explained");
  mark(out.querySelector("[data-input]"), value.dataset.span?.split(" ").map(Number));
  const sure = value.dataset.probability ? `${Math.round(value.dataset.probability * 100)} % sure. ` : "";
  out.querySelector("[data-note]").textContent =
    (value.classList.contains("is-unsure") ? "Check this: " : "") +
    sure +
    (value.dataset.span ? "The text says it where it is marked." : "The text does not say it in these words.");
}

function mark(text, span) {
  const characters = Array.from(text.textContent); // the server counts code points, not UTF-16 units
  const [start, end] = span ?? [0, 0];
  const marked = document.createElement("mark");
  marked.textContent = characters.slice(start, end).join("");
  text.replaceChildren(characters.slice(0, start).join(""), marked, characters.slice(end).join(""));
  if (span) text.scrollTop = marked.offsetTop - text.clientHeight / 2;
}

for (const event of ["pointerover", "focusin", "click"]) panel.addEventListener(event, explain);

panel.addEventListener("htmx:afterSwap", (event) => makeReachable(event.target));

panel.addEventListener("click", (event) => {
  const button = event.target.closest("[data-download]");
  if (!button) return;
  const text = button.closest("[data-try-out]").querySelector("code").textContent;
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href, download: button.dataset.download }).click();
  URL.revokeObjectURL(href);
});

panel.addEventListener("htmx:afterRequest", (event) => {
  const button = event.target.closest("[data-delete]");
  if (!button || !event.detail.successful) return;
  const { tryOut } = button.closest("[data-try-out]").dataset;
  for (const each of panel.querySelectorAll(`[data-try-out="${tryOut}"]`)) (each.closest("article") ?? each).remove();
});
