/* The composer, and the stream of one conversation. The protocol is described in chat/consumers.py.

   A live message is HTML of its closed blocks, the text of the open rest, and a cursor. Whatever goes
   wrong is mended in one way: ask to resume, and get the whole state again. */

const byId = (id) => document.getElementById(id);
const composer = byId("composer");
const box = byId("composer-text");
const messages = byId("messages");
const conversation = composer?.dataset.conversation ?? "";
const MAX_FRAME_BYTES = 250_000; // the server closes a socket that sends more
const STILL_WRITING = "The answer is still being written. Wait for its end, or stop it with Esc.";
const draftKey = `draft:${conversation || "new"}`;
const points = (text) => Array.from(text); // the server counts code points, not UTF-16 units
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

// Text boxes: they grow with their text, and Enter sends.

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

if (box) {
  const submitted = sessionStorage.getItem("submitted");
  if (conversation && submitted !== null) {
    // The new chat's first message has arrived: its draft is done.
    if (localStorage.getItem("draft:new") === submitted) localStorage.removeItem("draft:new");
    sessionStorage.removeItem("submitted");
  }
  if (!box.value) box.value = localStorage.getItem(draftKey) ?? "";
  grow(box);
  box.addEventListener("input", () => {
    grow(box);
    localStorage.setItem(draftKey, box.value);
  });
  box.addEventListener("keydown", sendOnEnter);
  if (conversation) {
    startChat();
  } else {
    composer.addEventListener("submit", () => sessionStorage.setItem("submitted", box.value));
  }
}

// The schema of the answers: a menu that is loaded when it opens, and a hidden field

const schemaMenu = byId("schemas");

function chooseSchema({ schema, name = "" }) {
  byId("schema").value = schema;
  composer.classList.toggle("has-schema", Boolean(schema));
  byId("schema-button").setAttribute("aria-label", `Schema of the answers: ${name || "none"}`);
  for (const place of document.querySelectorAll("[data-schema-name]")) place.textContent = name || place.dataset.schemaName;
  schemaMenu.hidePopover();
  box.focus();
}

schemaMenu?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action=choose-schema]");
  if (button) chooseSchema(button.dataset);
});
schemaMenu?.addEventListener("keydown", (event) => {
  const places = [...schemaMenu.querySelectorAll("input, button, a")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const isChoice = event.key === "Enter" && event.target === places[0];
  if (!step && !isChoice) return;
  event.preventDefault();
  if (isChoice) places[1]?.click();
  else places.at((places.indexOf(event.target) + step) % places.length).focus();
});

function startChat() {
  const live = new Map(); // message id → { element, closed, cursor, thought, tail, unspoken }
  const heard = new Set([...messages.querySelectorAll("[data-live]")].map((element) => element.dataset.id));
  const outboxKey = `unacknowledged:${conversation}`;
  const scroller = byId("scroller");
  let outbox = JSON.parse(sessionStorage.getItem(outboxKey) ?? "[]");
  const unsent = new Set(); // commands given while the socket was closed, as JSON
  let socket = null;
  let attempts = 0;
  let retry = 0;
  let numRefreshes = 0;
  let isEndAsked = false; // until a refresh brings it: a later one may overtake the one that asked

  // The socket

  function connect() {
    clearTimeout(retry);
    if (socket && socket.readyState <= WebSocket.OPEN) return;
    socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/ws/chat/${conversation}/`);
    socket.onopen = () => {
      attempts = 0;
      byId("connection").hidden = true;
      outbox.forEach(post);
      unsent.forEach((command) => socket.send(command));
      unsent.clear();
      live.clear();
      refresh();
    };
    socket.onmessage = (event) => {
      const frame = JSON.parse(event.data);
      receive[frame.type]?.(frame, live.get(frame.message));
    };
    socket.onclose = (event) => {
      if (event.code === 4001) location.assign(document.body.dataset.login);
      else if (event.code === 4004) leaveForNewChat();
      else reconnectLater();
    };
  }

  /* This chat was deleted elsewhere: what was being written goes along. */
  function leaveForNewChat() {
    const text = outbox.find((frame) => frame.type === "send")?.text ?? box.value;
    if (text) localStorage.setItem("draft:new", text);
    sessionStorage.removeItem(outboxKey);
    localStorage.removeItem(draftKey);
    location.assign(document.body.dataset.new);
  }

  function reconnectLater() {
    // Full jitter: after a restart the tabs of all users do not come back in one instant.
    const wait = Math.random() * Math.min(5_000, 500 * 2 ** attempts++);
    if (attempts > 1) byId("connection").hidden = false;
    retry = setTimeout(connect, wait);
  }

  function post(frame) {
    const isRepeated = frame.cid || frame.type === "resume"; // by itself, when the socket opens
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(frame));
    else if (!isRepeated) unsent.add(JSON.stringify(frame));
  }

  for (const [target, name] of [[window, "online"], [window, "pageshow"], [document, "visibilitychange"]]) {
    target.addEventListener(name, () => document.visibilityState === "visible" && connect());
  }

  // Frames of the server

  const receive = {
    async ack({ cid, reply }) {
      const frame = forget(cid);
      if (frame?.type === "send") {
        clearComposer(frame.text);
        composer.dispatchEvent(new Event("sent"));
      }
      changedChats();
      await refresh({ toEnd: true });
      const element = byId(`m-${reply}`);
      if (element && !element.hasAttribute("data-live")) announceEnd(element, textOf(element));
    },
    changed() {
      refresh();
    },
    compressing({ is_on: isOn }) {
      byId("compressing").hidden = !isOn;
    },
    reset({ message, html, tail, to }, state) {
      if (!state) return;
      const closed = state.element.querySelector("[data-closed]");
      closed.innerHTML = html;
      Object.assign(state, { tail, cursor: to, closed: to - points(tail).length, unspoken: "" });
      if (!heard.has(message)) speak(state, closed.textContent + tail);
      heard.add(message);
      paint(state);
    },
    text({ message, at, to, text }, state) {
      if (!state || to <= state.cursor) return;
      if (at !== state.cursor) return post({ type: "resume", message });
      state.tail += text;
      state.cursor = to;
      speak(state, text);
      paint(state);
    },
    block({ message, at, to, html }, state) {
      if (!state || to <= state.closed) return;
      if (at !== state.closed || to > state.cursor) return post({ type: "resume", message });
      state.element.querySelector("[data-closed]").insertAdjacentHTML("beforeend", html);
      state.tail = points(state.tail).slice(to - at).join("");
      state.closed = to;
      paint(state);
    },
    reasoning({ message, at, to, text }, state) {
      if (!state || (at && to <= state.thought)) return;
      if (at && at !== state.thought) return post({ type: "resume", message });
      const details = state.element.querySelector(".reasoning");
      details.hidden = false;
      const place = details.querySelector("[data-reasoning]");
      if (at) place.append(text);
      else place.textContent = text;
      state.thought = to;
    },
    status(frame, state) {
      if (state) state.element.querySelector("[data-stage-text]").textContent = inWords(frame);
    },
    async done({ message }, state) {
      live.delete(message);
      if (!live.size && byId("problem").textContent === STILL_WRITING) problem("");
      const response = await fetch(`${messages.dataset.url}/${message}`);
      if (!response.ok) return refresh();
      const element = parse(await response.text())[0];
      const old = byId(element.id);
      if (old?.querySelector(".reasoning")?.open) element.querySelector(".reasoning")?.setAttribute("open", "");
      old?.replaceWith(element);
      htmx.process(element);
      // Still live here means that the server begins again with it: give it a moment.
      setTimeout(attach, element.hasAttribute("data-live") ? 1000 : 0);
      const isHeard = heard.has(message) && !element.hasAttribute("data-structured"); // a form is read at its end
      if (state) announceEnd(element, isHeard ? state.unspoken : textOf(element));
      changedChats();
      // What stands for the files of the question may only now be known.
      if (element.previousElementSibling?.querySelector(".sent-files")) refresh();
      else recount();
    },
    error({ cid, message }) {
      const frame = forget(cid);
      if (frame) refresh();
      if (frame?.type === "send" && !box.value) setComposer(frame.text);
      problem(message);
    },
  };

  function inWords({ stage, fraction, place, wait_s: wait }) {
    const percent = `${Math.round(fraction * 100)} %`;
    if (stage === "summary") return `Summarising the attached files ${percent}`;
    if (stage === "loading") return `Loading model${fraction > 0 && fraction < 1 ? ` ${percent}` : "…"}`;
    if (stage === "compression") return `Summarising older messages${fraction ? ` ${percent}` : "…"}`;
    if (stage === "prefill") return fraction < 1 ? `Reading the prompt ${percent}` : "";
    return `Place ${place} in the queue${wait ? `, about ${Math.ceil(wait)} s` : ""}`;
  }

  // Live messages

  const textOf = (element) => element.querySelector("[data-closed]").innerText;

  function paint({ element, tail, cursor }) {
    const place = element.querySelector("[data-tail]");
    place.textContent = tail;
    place.classList.toggle("is-code", /^(```|~~~)/.test(tail));
    element.classList.toggle("has-text", cursor > 0);
  }

  /* Take up the live messages of the page that are not read yet. */
  function attach() {
    const elements = [...messages.querySelectorAll("[data-live]")];
    const ids = elements.map((element) => element.dataset.id);
    for (const id of live.keys()) if (!ids.includes(id)) live.delete(id);
    for (const element of elements) {
      const id = element.dataset.id;
      if (live.get(id)?.element === element) continue;
      live.set(id, { element, closed: 0, cursor: 0, thought: 0, tail: "", unspoken: "" });
      post({ type: "resume", message: id });
    }
    messages.classList.toggle("is-answering", elements.length > 0);
    byId("send").hidden = elements.length > 0;
    byId("stop").hidden = elements.length === 0;
  }

  function parse(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return [...template.content.children];
  }

  /* Show the messages as the server has them; elements that did not change stay. Where a part from the middle
     is shown, it stays that part, unless the end is asked for. */
  async function refresh({ toEnd = false } = {}) {
    const mine = ++numRefreshes;
    isEndAsked ||= toEnd;
    const shown = shownIds();
    const isPart = byId("later") !== null;
    const part = new URLSearchParams();
    if (!isPart || !isEndAsked) part.set("from", shown[0] ?? "");
    if (isPart && !isEndAsked) part.set("to", shown.at(-1));
    const response = await fetch(`${messages.dataset.url}?${part}`).catch(() => null);
    if (!response?.ok || mine !== numRefreshes) return;
    if (shownIds().length !== shown.length) return refresh(); // earlier or later ones came in meanwhile
    isEndAsked = false;
    const elements = parse(await response.text()).map((element) => {
      const old = element.id && byId(element.id);
      return old && old.dataset.rev === element.dataset.rev ? old : element;
    });
    const hasAll = outbox.every((frame) => frame.type !== "send");
    const pending = hasAll ? [] : [...messages.querySelectorAll(".is-pending:not([data-id])")];
    messages.replaceChildren(...elements, ...pending);
    htmx.process(messages);
    attach();
    recount();
  }

  const shownIds = () => [...messages.querySelectorAll("[data-id]")].map((element) => element.dataset.id);
  const recount = () => htmx.trigger(document.body, "recount");
  document.addEventListener("messages-changed", refresh); // the panel has placed one
  document.addEventListener("summary-changed", () => {
    byId("dialog").close();
    refresh();
  });

  const changedChats = () => htmx.trigger(document.body, "chats-stale");
  messages.addEventListener("htmx:afterSwap", (event) => {
    attach();
    if (event.target === messages) recount(); // another branch
  });

  // What the reader sends

  function submit(frame) {
    frame.cid = newId();
    const size = new Blob([JSON.stringify(frame)]).size;
    if (size > MAX_FRAME_BYTES) return problem(`The message is ${Math.ceil(size / 1000)} kB long; about 200 kB fit. Attach it as a file, or shorten it.`);
    problem("");
    outbox.push(frame);
    keepOutbox();
    showPending(frame);
    post(frame);
    isAtEnd = true;
    toEnd();
  }

  function forget(cid) {
    const frame = outbox.find((each) => each.cid === cid);
    outbox = outbox.filter((each) => each !== frame);
    keepOutbox();
    box.readOnly = outbox.some((each) => each.type === "send");
    return frame;
  }

  const keepOutbox = () => sessionStorage.setItem(outboxKey, JSON.stringify(outbox));

  function showPending(frame) {
    if (frame.type === "send") {
      const bubble = byId("pending").content.cloneNode(true);
      bubble.querySelector("[data-text]").textContent = frame.text;
      messages.append(bubble);
      box.readOnly = true;
    } else {
      const element = byId(`m-${frame.message}`);
      element?.classList.add("is-pending");
      if (element) element.dataset.rev = "old";
      const text = element?.querySelector("[data-text]");
      if (text) text.textContent = frame.text;
    }
  }

  function setComposer(text) {
    box.value = text;
    box.dispatchEvent(new Event("input"));
  }

  function clearComposer(sent) {
    if (box.value.trim() === sent.trim()) setComposer("");
    localStorage.removeItem(draftKey);
  }

  function problem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = !text;
  }

  // One answer at a time: says so, where something else is asked for meanwhile.
  function mustWait() {
    if (live.size) problem(STILL_WRITING);
    return live.size > 0 || outbox.length > 0;
  }

  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim() === "/compress") return compress();
    if (!box.value.trim() || mustWait()) return;
    submit({ type: "send", text: box.value, ...schemaChoice(), attachments: chosenFiles() });
  });

  const chosenFiles = () =>
    [...composer.querySelectorAll(".file-chip[data-file]")].map((chip) => ({
      file: chip.dataset.file,
      mode: chip.querySelector("[name=mode]").value,
      cut_at: Number(chip.querySelector("[name=cut_at]").value) || null,
    }));

  const schemaChoice = () => ({ schema: byId("schema").value || null });
  function compress(again = false) {
    byId("dialog").close();
    problem("");
    if (box.value.trim() === "/compress") setComposer("");
    if (!mustWait()) post({ type: "compress", again });
  }

  const actions = {
    compress: () => compress(),
    "compress-again": () => compress(true),
    "cancel-compression": () => post({ type: "cancel-compression" }),
    regenerate: (message) => mustWait() || post({ type: "regenerate", message, ...schemaChoice() }),
    continue: (message) => {
      heard.add(message); // what there is of it
      if (!mustWait()) post({ type: "continue", message });
    },
    edit: openEditor,
    "cancel-edit": closeEditor,
    stop: () => live.forEach((_, message) => post({ type: "stop", message })),
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (button) actions[button.dataset.action]?.(button.closest("[data-id]")?.dataset.id);
  });

  // Editing in place

  function openEditor(id) {
    const element = byId(`m-${id}`);
    if (element.querySelector(".editor") || mustWait()) return;
    const form = byId("editor").content.cloneNode(true).firstElementChild;
    const area = form.querySelector("textarea");
    const text = element.querySelector("[data-text]").textContent;
    area.value = text;
    form.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", sendOnEnter);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!area.value.trim() || mustWait()) return;
      closeEditor(id);
      submit({ type: "edit", message: id, text: area.value, ...schemaChoice() });
    });
    element.classList.add("is-edited");
    element.prepend(form);
    grow(area);
    area.focus();
  }

  function closeEditor(id) {
    const element = byId(`m-${id}`);
    element.querySelector(".editor")?.remove();
    element.classList.remove("is-edited");
    box.focus();
  }

  box.addEventListener("keydown", (event) => {
    const last = [...messages.querySelectorAll(".user[data-id]")].at(-1);
    if (event.key !== "ArrowUp" || box.value || !last) return;
    event.preventDefault();
    openEditor(last.dataset.id);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.shiftKey || event.isComposing) return;
    const editor = event.target.closest?.(".editor");
    if (editor) closeEditor(editor.closest("[data-id]").dataset.id);
    else actions.stop();
  });

  // Scrolling: follow the text only while the reader is at the end

  let isAtEnd = !location.hash;
  let lastTop = 0;
  function toEnd() {
    scroller.scrollTo({ top: scroller.scrollHeight, behavior: "instant" });
    lastTop = scroller.scrollTop;
  }
  scroller.addEventListener("scroll", () => {
    // Text that came since we scrolled to the end is no reason to stay behind: only a reader who goes up does.
    const isUp = scroller.scrollTop < lastTop;
    lastTop = scroller.scrollTop;
    const isNear = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 24;
    isAtEnd = !byId("later") && (isNear || (isAtEnd && !isUp));
    byId("to-latest").hidden = isAtEnd;
  });
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && (isAtEnd = false), { passive: true });
  const follow = new ResizeObserver(() => isAtEnd && scroller.scrollTop >= lastTop && toEnd());
  follow.observe(messages);
  follow.observe(scroller);
  byId("to-latest").addEventListener("click", async () => {
    if (byId("later")) await refresh({ toEnd: true });
    isAtEnd = true;
    toEnd();
  });

  // Earlier messages come in above: what the reader looks at stays where it is
  messages.addEventListener("htmx:beforeSwap", (event) => {
    if (event.target.id !== "earlier") return;
    const below = scroller.scrollHeight - scroller.scrollTop;
    messages.addEventListener("htmx:afterSwap", () => (scroller.scrollTop = scroller.scrollHeight - below), { once: true });
  });

  // Screen readers get whole sentences

  function speak(state, text) {
    state.unspoken += text;
    const end = /^[\s\S]*[.!?…:](?=\s)|^[\s\S]*\n/.exec(state.unspoken)?.[0].length ?? 0;
    if (end) announce(state.unspoken.slice(0, end));
    state.unspoken = state.unspoken.slice(end);
  }

  function announce(text) {
    const line = document.createElement("p");
    line.textContent = text.replace(/[*_`#|>~$]+/g, "").trim();
    if (line.textContent) byId("announcer").append(line);
    while (byId("announcer").children.length > 5) byId("announcer").firstChild.remove();
  }

  function announceEnd(element, rest) {
    announce(rest);
    announce(element.querySelector(".outcome p")?.textContent ?? "Answer complete.");
  }

  for (const frame of outbox) showPending(frame);
  for (const { type, text } of outbox) if (type === "send" && !box.value) box.value = text;
  toEnd();
  attach();
  connect();
  if (!location.hash) box.focus({ preventScroll: true });
}
