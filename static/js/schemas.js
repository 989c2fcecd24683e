/* The editor of schemas: line numbers, rows that come and go, the jump to a fault. The server does the rest. */

const byId = (id) => document.getElementById(id);
const isText = (node) => node?.id === "id_text";

function number(area) {
  const gutter = area.parentElement.querySelector(".gutter");
  if (!gutter) return;
  const count = area.value.split("\n").length;
  if (gutter.dataset.count !== String(count)) {
    gutter.dataset.count = count;
    gutter.textContent = Array.from({ length: count }, (_, at) => at + 1).join("\n");
  }
  gutter.scrollTop = area.scrollTop;
}

function jumpTo(area, line, column) {
  byId("tab-text").checked = true;
  const before = area.value.split("\n").slice(0, line - 1);
  const at = before.reduce((sum, each) => sum + each.length + 1, 0) + column - 1;
  area.focus();
  area.setSelectionRange(at, at + 1);
  area.scrollTop = (area.scrollHeight / area.value.split("\n").length) * Math.max(0, line - 5);
}

document.addEventListener("click", (event) => {
  const place = event.target.closest("[data-line]");
  if (place && byId("id_text")) jumpTo(byId("id_text"), Number(place.dataset.line), Number(place.dataset.column));
  const add = event.target.closest("[data-add]");
  if (add) {
    const list = document.querySelector(add.dataset.to);
    list.append(byId(add.dataset.add).content.cloneNode(true));
    list.querySelector(".notice")?.remove();
    list.lastElementChild.querySelector("input, textarea").focus();
  }
  const remove = event.target.closest("[data-remove]");
  if (remove) {
    const row = remove.closest(remove.dataset.remove);
    const neighbour = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    (neighbour ?? document).querySelector("input, textarea")?.focus();
    byId("builder")?.dispatchEvent(new Event("rows"));
  }
});

// The rows stand outside the form they belong to, so that their events do not pass through it.
for (const kind of ["input", "change"]) {
  document.addEventListener(kind, (event) => {
    if (isText(event.target)) number(event.target);
    if (event.target.closest?.("#rows")) byId("builder").dispatchEvent(new Event(kind));
  });
}

document.addEventListener("scroll", (event) => isText(event.target) && number(event.target), true);
document.addEventListener("htmx:oobAfterSwap", () => byId("id_text") && number(byId("id_text")));
if (byId("id_text")) number(byId("id_text"));
