/* The frame of the chat pages: sidebar, dialogs, theme, copy buttons, shortcuts. Knows nothing of the stream. */

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const isPhone = () => matchMedia("(max-width: 48rem)").matches;

const remember = (name, value) => {
  document.cookie = `${name}=${encodeURIComponent(value)}; path=/; max-age=31536000; samesite=lax`;
};
remember("zone", Intl.DateTimeFormat().resolvedOptions().timeZone);

// On a phone the sidebar is a drawer that each page opens with; elsewhere its state is kept.
function toggleSidebar() {
  if (isPhone()) {
    root.toggleAttribute("data-drawer");
    if (root.hasAttribute("data-drawer")) byId("sidebar").querySelector("a, button").focus();
    return;
  }
  root.dataset.sidebar = root.dataset.sidebar === "closed" ? "open" : "closed";
  remember("sidebar", root.dataset.sidebar);
}

function focusSearch() {
  const isHidden = isPhone() ? !root.hasAttribute("data-drawer") : root.dataset.sidebar === "closed";
  if (isHidden) toggleSidebar();
  byId("search").focus();
  byId("search").select();
}

function toggleSettings() {
  const panel = byId("settings");
  if (!panel) return;
  panel.hidden = !panel.hidden;
  const button = document.querySelector(".bar [data-action=settings]");
  button.setAttribute("aria-expanded", String(!panel.hidden));
  (panel.hidden ? button : panel.querySelector("button")).focus();
}

function toast(text) {
  byId("toast").textContent = text;
  byId("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (byId("toast").hidden = true), 1800);
}

// The clipboard API is missing on plain HTTP from another machine.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}

function sourceOf(message) {
  const source = message.querySelector("[data-source]");
  return source ? source.content.textContent : message.querySelector("[data-text]").textContent;
}

function copyLastAnswer() {
  const answer = [...document.querySelectorAll(".message.assistant:not([data-live])")].at(-1);
  if (answer) copy(sourceOf(answer));
}

const actions = {
  sidebar: toggleSidebar,
  settings: toggleSettings,
  shortcuts: () => {
    byId("user-menu").hidePopover();
    byId("shortcuts").showModal();
  },
  close: (button) => button.closest("dialog").close(),
  copy: (button) => copy(sourceOf(button.closest(".message"))),
};

// Folders stay as the reader left them, over pages if open; the server opens the one that holds the open chat.
const folders = new Map(JSON.parse(localStorage.getItem("folders") ?? "[]").map((name) => [name, true]));
function restoreFolders() {
  for (const each of document.querySelectorAll("[data-folder]")) each.open = folders.get(each.dataset.folder) ?? each.open;
}
function keepFolder(folder) {
  folders.set(folder.dataset.folder, !folder.open); // the click has yet to take effect
  localStorage.setItem("folders", JSON.stringify([...folders.keys()].filter((name) => folders.get(name))));
}
restoreFolders();

document.addEventListener("click", (event) => {
  const folder = event.target.closest("[data-folder] > summary")?.parentElement;
  if (folder) keepFolder(folder);
  const code = event.target.closest(".copy-code");
  if (code) copy(code.closest(".code").querySelector("code").textContent);
  const button = event.target.closest("[data-action]");
  if (button) actions[button.dataset.action]?.(button);
});

document.addEventListener("change", (event) => {
  if (event.target.name !== "theme") return;
  root.dataset.theme = event.target.value;
  remember("theme", event.target.value);
});

document.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  const run =
    control && !event.shiftKey && !event.altKey
      ? { k: focusSearch, b: toggleSidebar, "/": actions.shortcuts, ".": toggleSettings }[key]
      : control && event.shiftKey
        ? { o: () => location.assign(document.body.dataset.new), c: copyLastAnswer, "/": actions.shortcuts }[key]
        : event.shiftKey && key === "escape"
          ? () => byId("composer-text")?.focus()
          : key === "?" && !isTyping
            ? actions.shortcuts
            : null;
  if (!run) return;
  event.preventDefault();
  run();
});

// Esc closes what is open, the topmost first; chat.js stops the answer only when nothing was.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.shiftKey || event.isComposing || event.defaultPrevented) return;
  if (document.querySelector("dialog[open], :popover-open")) {
    event.stopImmediatePropagation(); // the browser closes it
  } else if (root.hasAttribute("data-drawer")) {
    event.stopImmediatePropagation();
    toggleSidebar();
    document.querySelector(".show-sidebar").focus();
  } else if (byId("settings")?.contains(event.target)) {
    event.stopImmediatePropagation();
    toggleSettings();
  }
});

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id === "chats") restoreFolders();
  if (event.target.id === "dialog") {
    byId("chat-menu").hidePopover();
    if (!byId("dialog").open) byId("dialog").showModal();
  }
});
document.addEventListener("chats-changed", () => {
  byId("dialog").close();
  byId("chat-menu").hidePopover();
});
document.addEventListener("htmx:sendError", () => toast("That did not work. Is the server running?"));
document.addEventListener("htmx:responseError", (event) => {
  const isGone = event.detail.xhr.status === 404;
  toast(isGone ? "That is not there any more. Reload the page." : "That did not work. Reload the page, then try again.");
});

// A button is seen to work until the next page is here, for some verbs take a while.
document.addEventListener("submit", (event) => {
  if (!event.defaultPrevented) event.submitter?.setAttribute("aria-busy", "true");
});
addEventListener("pageshow", () => document.querySelector("button[aria-busy]")?.removeAttribute("aria-busy"));
