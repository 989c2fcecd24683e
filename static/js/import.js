/* A large export file goes up in parts: each is asked for by its place, so that a lost one is sent again. */

const byId = (id) => document.getElementById(id);
const form = byId("import");
const PART_BYTES = 1 << 20; // the server takes a little more of a request at once
const MAX_TRIES = 5;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function send(file, at) {
  const query = new URLSearchParams({ at, size: file.size, name: file.name });
  const headers = { "X-CSRFToken": form.querySelector("[name=csrfmiddlewaretoken]").value };
  for (let tries = 1; ; tries++) {
    const body = file.slice(at, at + PART_BYTES);
    const response = await fetch(`${form.dataset.parts}?${query}`, { method: "POST", headers, body }).catch(() => null);
    const answer = await response?.json().catch(() => null);
    if (answer && (response.ok || response.status === 409)) return answer;
    if (answer?.error || tries === MAX_TRIES) throw new Error(answer?.error ?? "The file could not be sent. Is the server running? Try again.");
    await pause(500 * 2 ** tries);
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = byId("import-file").files[0];
  const [button, progress, problem] = [form.querySelector("button"), byId("import-progress"), byId("import-problem")];
  problem.hidden = true;
  progress.hidden = false;
  button.disabled = true;
  try {
    if (!file.size) throw new Error("The file is empty. Choose another one.");
    progress.max = file.size;
    for (let answer = { at: 0 }; ; ) {
      answer = await send(file, answer.at);
      progress.value = answer.at;
      if (answer.page) return location.assign(answer.page);
    }
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    progress.hidden = true;
    button.disabled = false;
  }
});
