// Suggests as you type. Text from users or from the server is only set as textContent.
"use strict";

const $ = (id) => document.getElementById(id);
const K = 10;
const state = {
  asked: 0, // number of the newest request
  shownFor: 0, // number of the request whose reply is on the page
  reply: null, // that reply
  typed: "", // the typed text; a choice in the list does not change it
  active: -1, // chosen entry of the list, -1: none
  composing: false, // an input method is composing text (Chinese, for example)
  pending: null, // AbortController of the unanswered request
  searched: null, // the last feedback that was sent
  pace: [],
  retry: 0,
  version: "",
};

// ------------------------------------------------------------------ requests to the server

function fromStorage(area, name, make) {
  try {
    const value = area.getItem(name) || make();
    if (value) area.setItem(name, value);
    return value;
  } catch {
    return make(); // no access to storage: for this visit only
  }
}

function randomId(kind) {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `${kind}-` + Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

const visitor = fromStorage(localStorage, "onesug-visitor", () => randomId("visitor"));
const session = fromStorage(sessionStorage, "onesug-session", () => randomId("session"));
let key = fromStorage(sessionStorage, "onesug-key", () => "");

class Refused extends Error {
  constructor(status, message, after) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

async function call(method, path, body, signal) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (key) headers["x-api-key"] = key;
  const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  const reply = await response.json().catch(() => ({}));
  if (!response.ok) {
    const message = (reply.errors || []).map((e) => `${e.field}: ${e.message}`).join("; ");
    throw new Refused(response.status, message, Number(response.headers.get("retry-after")));
  }
  return reply;
}

// ------------------------------------------------------------------ state and errors

function setState(is, text) {
  $("state").dataset.is = is;
  $("state-text").textContent = text;
}

function showError(title, text, needsKey = false) {
  $("trouble").hidden = false;
  $("trouble-title").textContent = title;
  $("trouble-text").textContent = text;
  $("key-form").hidden = !needsKey;
}

function hideError() {
  $("trouble").hidden = true;
  clearTimeout(state.retry);
  state.retry = 0;
}

function failed(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) {
    setState("dead", "needs a key");
    showError("This service needs an API key.", "", true);
    return;
  }
  if (error.status === 503 && /^model/.test(error.message)) {
    setState("waiting", "loading");
    showError("The model is loading.", "Lists will appear when it is ready.");
  } else if (error.status === 503 || error.status === 504) {
    setState("waiting", "busy");
    showError("The service is busy.", "The page will try again in a moment.");
  } else if (error.status) {
    showError("This text cannot be searched.", error.message);
    return;
  } else {
    setState("dead", "not reachable");
    showError("The server does not answer.", "Your text is safe; the page tries again every few seconds.");
  }
  if (!state.retry) {
    state.retry = setTimeout(() => {
      state.retry = 0;
      refresh();
    }, 1000 * Math.max(error.after || 0, 2));
  }
}

async function refresh() {
  try {
    const ready = await call("GET", "ready");
    state.version = ready.version;
    setState("ready", `version ${ready.version}`);
    hideError();
    await Promise.all([ask(), showHistory()]);
  } catch (error) {
    failed(error);
  }
}

// ------------------------------------------------------------------ lists

const view = () => document.querySelector("input[name=view]:checked").value;

async function ask() {
  const number = ++state.asked;
  state.pending?.abort();
  const pending = (state.pending = new AbortController());
  $("main-card").classList.add("stale");
  const began = performance.now();
  try {
    const reply = await call("POST", "suggest", {
      prefix: state.typed, user_id: visitor, k: K, why: true, compare: true,
    }, pending.signal);
    if (number < state.asked) return; // a reply to an earlier request is never shown
    hideError();
    if (reply.version !== state.version) state.version = reply.version;
    setState("ready", `version ${reply.version}`);
    pace(performance.now() - began);
    state.shownFor = number;
    state.reply = reply;
    activate(-1);
    show();
  } catch (error) {
    if (number === state.asked) failed(error);
  } finally {
    if (number === state.asked) $("main-card").classList.remove("stale");
  }
}

function entry(parent, text, place) {
  const item = document.createElement("li");
  const number = document.createElement("span");
  number.className = "place";
  number.textContent = place + 1;
  const words = document.createElement("span");
  const typed = state.reply.prefix;
  const starts = typed && text.startsWith(typed);
  for (const [kind, part] of starts
    ? [["typed", typed], ["rest", text.slice(typed.length)]]
    : [["rest", text]]) {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = part;
    words.append(span);
  }
  item.append(number, words);
  parent.append(item);
  return item;
}

function show() {
  const { reply } = state;
  const which = view();
  const model = reply.suggestions.map((one) => one.text);
  const texts = which === "popular" ? reply.most_popular : model;
  $("lists").dataset.view = which;
  $("list-title").firstChild.textContent = which === "popular" ? "Most popular now " : "Model ";
  const names = { score: "scored pool", popular: "most popular, under load" };
  $("level").textContent = which === "popular" ? "" : names[reply.level] || "";
  $("level").toggleAttribute("data-low", reply.level === "popular");
  const list = $("list");
  list.replaceChildren();
  texts.forEach((text, place) => {
    const item = entry(list, text, place);
    item.id = `suggestion-${place}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    item.addEventListener("mousedown", (event) => event.preventDefault()); // the box keeps the focus
    item.addEventListener("click", () => search(text, place));
    if (which === "both") moved(item, place, reply.most_popular.indexOf(text));
  });
  $("nothing").hidden = texts.length > 0;
  const other = $("other");
  other.replaceChildren();
  $("other-card").hidden = which !== "both";
  if (which === "both") {
    reply.most_popular.forEach((text, place) => {
      entry(other, text, place).addEventListener("click", () => search(text, -1));
    });
  }
  open(texts.length > 0);
  $("said").textContent = `${texts.length} suggestions`;
  showTrending(reply);
  showWhy(reply);
}

function moved(item, place, before) {
  const mark = document.createElement("span");
  mark.className = "moved";
  mark.title = "place compared with the most popular";
  if (before < 0) [mark.textContent, mark.dataset.to] = ["new", "new"];
  else if (before > place) [mark.textContent, mark.dataset.to] = [`↑ ${before - place}`, "up"];
  else if (before < place) mark.textContent = `↓ ${place - before}`;
  item.append(mark);
}

function shownTexts() {
  return Array.from($("list").children, (_, place) =>
    view() === "popular" ? state.reply.most_popular[place] : state.reply.suggestions[place].text);
}

function open(is) {
  $("query").setAttribute("aria-expanded", String(is));
  $("list").hidden = !is;
  if (!is) activate(-1);
}

function activate(place) {
  const items = $("list").children;
  items[state.active]?.setAttribute("aria-selected", "false");
  state.active = place;
  const box = $("query");
  if (place < 0) {
    box.removeAttribute("aria-activedescendant");
    return;
  }
  items[place].setAttribute("aria-selected", "true");
  items[place].scrollIntoView({ block: "nearest" });
  box.setAttribute("aria-activedescendant", items[place].id);
}

// ------------------------------------------------------------------ choice and feedback

async function search(text, place) {
  if (!text.trim()) return;
  // If the newest text has no list yet, the list on the page belongs to another prefix.
  const reply = place >= 0 || state.shownFor === state.asked ? state.reply : null;
  const body = {
    request_id: reply && !reply.used ? reply.request_id : randomId("request"),
    user_id: visitor,
    session_id: session,
    prefix: reply ? reply.prefix : state.typed,
    shown: reply ? shownTexts() : [],
  };
  if (reply) reply.used = true; // a list is reported once; a later search is another request
  if (place >= 0) body.clicked_position = place;
  else body.query = text;
  state.searched = body;
  $("searched").hidden = false;
  $("searched-text").textContent = text;
  $("saved").textContent = "";
  for (const name of ["opened", "ordered"]) $(name).disabled = false;
  state.typed = "";
  $("query").value = "";
  open(false);
  state.reply = null; // nothing can be chosen from it any more
  for (const list of ["list", "other"]) $(list).replaceChildren();
  await sendFeedback(body, "saved; your next lists use it");
  await Promise.all([ask(), showHistory()]);
}

async function sendFeedback(body, done) {
  try {
    await call("POST", "feedback", body);
    $("saved").textContent = done;
  } catch (error) {
    $("saved").textContent = "not saved";
    failed(error);
  }
}

async function showHistory() {
  let stored;
  try {
    stored = await call("GET", `users/${encodeURIComponent(visitor)}`);
  } catch (error) {
    failed(error);
    return;
  }
  const chips = $("history");
  chips.replaceChildren();
  for (const text of stored.history) {
    const chip = document.createElement("li");
    chip.textContent = text;
    chips.append(chip);
  }
  const none = stored.history.length === 0;
  $("no-history").hidden = !none;
  $("clear").hidden = none;
}

// ------------------------------------------------------------------ pace

function pace(took) {
  state.pace = [...state.pace, took].slice(-48);
  $("latency").textContent = `${took < 10 ? took.toFixed(1) : Math.round(took)} ms`;
  const sorted = [...state.pace].sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const top = Math.max(...sorted, 1);
  const bars = state.pace.map((value, place) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = Math.max(2, (44 * value) / top);
    const sizes = { x: place * 5, y: 44 - height, width: 3.4, height, rx: 1 };
    for (const [name, size] of Object.entries(sizes)) bar.setAttribute(name, size);
    return bar;
  });
  $("pace").replaceChildren(...bars);
  $("pace-text").textContent =
    `median ${at(0.5).toFixed(0)} ms, 95 % within ${at(0.95).toFixed(0)} ms`;
}

// ------------------------------------------------------------------ keyboard

const box = $("query");

function typed() {
  if (state.composing) return;
  state.typed = box.value;
  ask();
}

box.addEventListener("input", typed);
box.addEventListener("compositionstart", () => { state.composing = true; });
box.addEventListener("compositionend", () => { state.composing = false; typed(); });
box.addEventListener("focus", () => { if (state.reply) open($("list").children.length > 0); });

box.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // the input method's own keys
  const count = $("list").children.length;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (!count) return;
    open(true);
    const step = event.key === "ArrowDown" ? 1 : -1;
    const place = ((state.active + 1 + step + count + 1) % (count + 1)) - 1; // -1: the typed text
    activate(place);
    box.value = place < 0 ? state.typed : shownTexts()[place];
  } else if (event.key === "Escape") {
    event.preventDefault();
    if (state.active >= 0 || !$("list").hidden) {
      box.value = state.typed;
      open(false);
    } else if (box.value) {
      box.value = state.typed = "";
      ask();
    }
  }
});

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.composing) return;
  if (state.active >= 0) search(shownTexts()[state.active], state.active);
  else search(box.value, -1);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) {
    event.preventDefault();
    box.focus();
  }
});

$("view").addEventListener("change", () => {
  if (state.reply) show();
  box.focus();
});

$("clear").addEventListener("click", async () => {
  try {
    await call("DELETE", `users/${encodeURIComponent(visitor)}`);
    $("searched").hidden = true;
    await Promise.all([ask(), showHistory()]);
    box.focus();
  } catch (error) {
    failed(error);
  }
});

for (const [name, field, said] of [
  ["opened", "clicked_items", "saved: an item was opened"],
  ["ordered", "ordered_items", "saved: an order"],
]) {
  $(name).addEventListener("click", () => {
    if (!state.searched) return;
    $(name).disabled = true;
    state.searched = { ...state.searched, [field]: ["page-item"] };
    sendFeedback(state.searched, said);
  });
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  try {
    sessionStorage.setItem("onesug-key", key);
  } catch { /* for this visit only */ }
  $("key").value = "";
  refresh();
});

$("visitor").textContent = visitor;
refresh();
