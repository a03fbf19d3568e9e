// The page: what is on it, and what happens when it is used.

import { Turn } from "./reply.js";
import * as server from "./server.js";
import { drawSessions } from "./sessions.js";
import { kept, label, say, switchLanguage, translate } from "./words.js";

const $ = (id) => document.getElementById(id);
const state = { session: null, turns: [], running: null, remembers: true, opening: 0 };

// Connection

let watching = false;

/** Asks until the server is ready again, and says so meanwhile. */
async function reconnect(what = "reconnecting") {
  if (watching) return;
  watching = true;
  label($("connection"), what).hidden = false;
  while (!(await server.isReady())) await new Promise((done) => setTimeout(done, 1000));
  watching = false;
  label($("connection"), "restored");
  setTimeout(() => { if (!watching) $("connection").hidden = true; }, 3000);
  await Promise.all([drawModels(), draw()]);
}

function failed(error) {
  if (error.passes) reconnect(error.code === "engine_unavailable" ? "loading" : "reconnecting");
  else if (error.status !== 401) announce(error.message);
}

function announce(text) {
  $("announce").textContent = text;
}

// Models

async function drawModels() {
  let cards;
  try {
    cards = await server.models();
  } catch (error) {
    failed(error);
    return;
  }
  // The names of the base model are one model: the first stands for them.
  const shown = cards.filter((card, at) => at === 0 || card.parent !== null);
  const wanted = $("model").value || kept.get("model");
  $("model").replaceChildren(...shown.map((card) => {
    const text = card.version ? `${card.id} · ${String(card.version).slice(0, 8)}` : card.id;
    return new Option(text, card.id, false, card.id === wanted);
  }));
  $("demo").hidden = !cards.some((card) => card.demo);
  label($("demo"), "demo");
}

// Sessions

const draw = async () => {
  state.remembers = await drawSessions(state.session, { deleted, failed });
};

function deleted(id) {
  if (id === state.session) begin();
}

function begin() {
  state.running?.abort();
  state.opening += 1;
  state.session = null;
  state.turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  if (location.hash) history.pushState(null, "", location.pathname);
  mark();
  $("question").focus();
}

function mark() {
  for (const link of document.querySelectorAll("#session-list a")) {
    if (state.session && link.hash === `#${encodeURIComponent(state.session)}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Shows the session that the address names. */
async function open() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id) { if (state.session) begin(); return; }
  if (id === state.session) return;
  state.running?.abort();
  const opening = (state.opening += 1);
  let stored;
  try {
    stored = await server.session(id);
  } catch (error) {
    if (opening !== state.opening) return;
    if (error.status === 404) { begin(); announce(say("missing")); showNote("missing"); }
    else { failed(error); if (error.passes) setTimeout(open, 1500); }
    return;
  }
  if (opening !== state.opening) return;
  state.session = id;
  state.turns = stored.turns.map((turn) => Turn.stored(turn, on));
  $("turns").replaceChildren(...state.turns.map((turn) => turn.node));
  $("welcome").hidden = state.turns.length > 0;
  mark();
  closeDrawer();
  toEnd(true);
}

function showNote(name) {
  label($("connection"), name).hidden = false;
  setTimeout(() => { if (!watching) $("connection").hidden = true; }, 5000);
}

// Asking

const on = { announce, retry: (turn) => ask(turn.question), painted: () => toEnd(false) };

function toEnd(always) {
  const view = $("scroll");
  if (always || view.scrollHeight - view.scrollTop - view.clientHeight < 160) view.scrollTop = view.scrollHeight;
}

async function body(question) {
  const asked = { enable_thinking: $("think").checked };
  if ($("model").value) asked.model = $("model").value;
  if (state.remembers && !state.session) {
    try {
      const made = await server.createSession({ title: question.replace(/\s+/g, " ").slice(0, 60) });
      state.session = made.id;
      history.pushState(null, "", `#${encodeURIComponent(made.id)}`);
    } catch (error) {
      if (error.code !== "unsupported_parameter" && error.status !== 404) throw error;
      state.remembers = false;
    }
  }
  if (state.remembers) return { ...asked, session_id: state.session, messages: [{ role: "user", content: question }] };
  const before = state.turns.slice(0, -1).filter((turn) => turn.answer && !turn.incomplete);
  const history_ = before.flatMap((t) => [{ role: "user", content: t.question }, { role: "assistant", content: t.answer }]);
  return { ...asked, messages: [...history_, { role: "user", content: question }] };
}

async function ask(question) {
  if (state.running || !question.trim()) return;
  const running = (state.running = new AbortController());
  const turn = new Turn(question, on);
  state.turns.push(turn);
  $("turns").append(turn.node);
  $("welcome").hidden = true;
  busy(true);
  toEnd(true);
  try {
    const wanted = await body(question);
    for await (const chunk of server.chat(wanted, running.signal, crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`)) {
      turn.take(chunk);
    }
    turn.finish();
  } catch (error) {
    if (error.name === "AbortError") turn.breakOff("stopped");
    else { turn.fail(error); toEnd(true); failed(error); }
  } finally {
    if (state.running === running) {
      state.running = null;
      busy(false);
    }
    toEnd(false);
  }
  await draw();
}

function busy(is) {
  const stopping = document.activeElement === $("stop") || document.activeElement === $("send");
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (stopping) (is ? $("stop") : $("question")).focus();
}

// Controls

function closeDrawer() {
  document.body.classList.remove("drawer");
  $("sessions-toggle").setAttribute("aria-expanded", "false");
}

function grow() {
  const box = $("question");
  box.rows = Math.min(8, Math.max(1, box.value.split("\n").length + Math.floor(box.value.length / 60)));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function texts() {
  translate();
  $("language").textContent = say("languageShort");
  $("examples").replaceChildren(...say("examples").map((text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => ask(text));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

let keyAsked = null;

/** One dialog, however many requests wait for it. */
function askForKey() {
  keyAsked ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    let given = null;
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      given = $("key").value.trim() || null;
      dialog.close();
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => { keyAsked = null; $("key").value = ""; resolve(given); };
    dialog.showModal();
  });
  return keyAsked;
}

function wire() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value;
    if (state.running || !question.trim()) return;
    $("question").value = "";
    grow();
    ask(question);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  });
  $("question").addEventListener("input", grow);
  $("stop").addEventListener("click", () => state.running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || $("key-dialog").open) return;
    if (document.body.classList.contains("drawer")) { closeDrawer(); $("sessions-toggle").focus(); }
    else state.running?.abort();
  });
  $("new").addEventListener("click", () => { closeDrawer(); begin(); });
  $("sessions-toggle").addEventListener("click", () => {
    const shown = document.body.classList.toggle("drawer");
    $("sessions-toggle").setAttribute("aria-expanded", String(shown));
    if (shown) $("new").focus();
  });
  $("language").addEventListener("click", () => { switchLanguage(); texts(); });
  $("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
    setTheme(now === "dark" ? "light" : "dark");
    kept.set("theme", document.documentElement.dataset.theme);
  });
  $("model").addEventListener("change", () => kept.set("model", $("model").value));
  $("think").addEventListener("change", () => kept.set("think", $("think").checked ? "yes" : "no"));
  addEventListener("hashchange", open);
  addEventListener("popstate", open);
  server.onMissingKey(askForKey);
}

if (kept.get("theme")) setTheme(kept.get("theme"));
$("think").checked = kept.get("think") !== "no";
texts();
wire();
await Promise.all([drawModels(), draw(), open()]);
if (!location.hash) $("question").focus();
if (!(await server.isReady())) reconnect("loading");
