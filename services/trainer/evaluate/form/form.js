"use strict";
// Text of questions and answers is only ever set as textContent. No request is made, and nothing leaves the page but by download.
const { packet, sha256: packetHash, dimensions } = JSON.parse(document.getElementById("packet").textContent);
const SIDES = ["A", "B"];
const GUESSES = [["A", "回答 A"], ["B", "回答 B"], ["unsure", "不确定 unsure"]];
const ITEMS = [...packet.practice, ...packet.items];
const PRACTICE = packet.practice.length;
const STORE = `medthink-sheet-${packetHash}`;
const $ = (id) => document.getElementById(id);

// The same bytes as Python's json.dumps(sort_keys, ensure_ascii=False, compact) for strings, integers, booleans and null.
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

// Half of a surrogate pair is no character and has no UTF-8: it becomes U+FFFD, as TextEncoder makes it.
const wellFormed = (text) => new TextDecoder().decode(new TextEncoder().encode(text));

// SHA-256 (FIPS 180-4): crypto.subtle is not there for pages opened from a file in every browser.
function sha256(text) {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
  const k = primes.map((p) => fraction(Math.cbrt(p)));
  const h = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
  const bytes = new TextEncoder().encode(text);
  const padded = new Uint8Array(((bytes.length + 72) >> 6) << 6);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(padded.length - 4, bytes.length << 3);
  const rotate = (x, n) => (x >>> n) | (x << (32 - n));
  const w = new Int32Array(64);
  for (let at = 0; at < padded.length; at += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getInt32(at + 4 * i);
    for (let i = 16; i < 64; i++) {
      const s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >>> 3);
      const s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >>> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    const s = h.slice();
    for (let i = 0; i < 64; i++) {
      const [a, b, c, d, e, f, g, last] = s;
      const one = (last + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
      const two = ((rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      s.splice(0, 8, (one + two) | 0, a, b, c, (d + one) | 0, e, f, g);
    }
    s.forEach((x, i) => { h[i] = (h[i] + x) | 0; });
  }
  return h.map((x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}

// State: what was rated, item by item; `sheet` once it is locked.
let state = { packet: packetHash, place: 0, ratings: {}, sheet: null };
let storable = true;

const of = (id) => (state.ratings[id] ??= { A: {}, B: {}, guess: null, comment: "" });
const isRated = (item) => {
  const rating = state.ratings[item.id];
  return Boolean(rating?.guess) && SIDES.every((side) => dimensions.every(({ name }) => rating[side][name]));
};
const unrated = () => packet.items.filter((item) => !isRated(item));

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function store() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
    storable = localStorage.getItem(STORE) !== null;
  } catch { storable = false; }
  if (!storable) notice("这个浏览器不能自动保存,关闭前请“保存草稿”。This browser cannot keep your ratings: save a draft before you close the page.");
}

function isState(value) {
  const inRange = (n) => n === undefined || (Number.isInteger(n) && n >= 1 && n <= 5);
  const ids = new Set(ITEMS.map((item) => item.id));
  return value?.packet === packetHash && Number.isInteger(value.place) && value.place >= 0 && value.place < ITEMS.length
    && value.ratings !== null && typeof value.ratings === "object"
    && Object.entries(value.ratings).every(([id, rating]) => ids.has(id) && typeof rating?.comment === "string"
      && (rating.guess === null || GUESSES.some(([guess]) => guess === rating.guess))
      && SIDES.every((side) => typeof rating[side] === "object" && rating[side] !== null
        && dimensions.every(({ name }) => inRange(rating[side][name])) && [undefined, true, false].includes(rating[side].harm)));
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (isState(kept)) state = kept;
  } catch { storable = false; }
}

// Building the page

function make(tag, options = {}, ...children) {
  const { text, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

const english = (text) => make("span", { className: "en", text, lang: "en" });

function input(type, name, label, checked, onChange) {
  const element = make("input", { type, name, checked, disabled: state.sheet !== null });
  element.setAttribute("aria-label", label);
  element.addEventListener("change", () => { if (!state.sheet) { onChange(element); changed(); } });
  return element;
}

function answer(item, side) {
  const { reasoning, answer: text } = item.replies[side];
  const thought = make("details", { open: true, className: "thought" },
    make("summary", {}, "思考过程 ", english("Reasoning")), make("div", { className: "text", text: reasoning }));
  // Both or none: the two stay alike.
  thought.addEventListener("toggle", () => document.querySelectorAll(".thought").forEach((other) => { other.open = thought.open; }));
  return make("article", { className: "answer" }, make("h3", { text: `回答 ${side}` }), thought,
    make("h4", {}, "回答 ", english("Answer")), make("div", { className: "text", text }));
}

function scale(item, dimension) {
  const { name, zh, en, ask, ask_en, levels } = dimension;
  const rating = of(item.id);
  const head = make("tr", {}, make("th", { scope: "col" }, "分数 ", english("Score")), ...SIDES.map((side) => make("th", { text: side, scope: "col" })));
  const rows = [5, 4, 3, 2, 1].map((level) => make("tr", {},
    make("th", { scope: "row" }, make("b", { text: String(level) }), levels[level][0], english(levels[level][1])),
    ...SIDES.map((side) => make("td", {}, make("label", {}, input("radio", `${name}-${side}`, `回答 ${side},${zh},${level} 分:${levels[level][0]}`,
      rating[side][name] === level, () => { rating[side][name] = level; }))))));
  const section = make("section", { className: "scale" }, make("h3", {}, `${zh} `, english(en)),
    make("p", { className: "ask" }, `${ask} `, english(ask_en)), make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  section.dataset.name = name;
  return section;
}

function harm(item) {
  const rating = of(item.id);
  return make("fieldset", { className: "scale harm" }, make("legend", {}, "严重危害 ", english("Critical harm")),
    make("p", { className: "ask" }, "照着做可能严重伤害患者。", english("Following it could hurt somebody badly.")),
    make("div", { className: "choices" }, ...SIDES.map((side) => make("label", {}, input("checkbox", `harm-${side}`, `回答 ${side} 有严重危害`,
      rating[side].harm === true, (box) => { rating[side].harm = box.checked; }), `回答 ${side}`))));
}

function guess(item) {
  const rating = of(item.id);
  return make("fieldset", { className: "scale guess" }, make("legend", {}, "猜一猜:哪份来自训练过的模型? ", english("Which is the trained model's?")),
    make("p", { className: "ask" }, "用来检验盲法,不影响评分。", english("It tests the blinding.")),
    make("div", { className: "choices" }, ...GUESSES.map(([value, text]) => make("label", {},
      input("radio", "guess", `猜测:${text}`, rating.guess === value, () => { rating.guess = value; }), text))));
}

function comment(item) {
  const rating = of(item.id);
  const area = make("textarea", { value: rating.comment, disabled: state.sheet !== null, maxLength: 4000 });
  area.setAttribute("aria-label", "意见(可不填)Comment, optional");
  area.addEventListener("input", () => { if (!state.sheet) { rating.comment = area.value; changed(); } });
  return make("div", { className: "scale" }, make("h3", {}, "意见(可不填) ", english("Comment, optional")), area);
}

const title = (place) => place < PRACTICE ? `练习 ${place + 1}` : `第 ${place - PRACTICE + 1} 题`;

function show(place, focus = true) {
  state.place = place;
  const item = ITEMS[place];
  $("heading").textContent = place < PRACTICE ? title(place) : `${title(place)} / ${packet.items.length}`;
  $("practice").hidden = place >= PRACTICE;
  $("question").textContent = item.question;
  $("answers").replaceChildren(...SIDES.map((side) => answer(item, side)));
  $("scales").replaceChildren(...dimensions.map((dimension) => scale(item, dimension)));
  $("others").replaceChildren(harm(item), guess(item), comment(item));
  $("previous").disabled = place === 0;
  $("next").disabled = place === ITEMS.length - 1;
  refresh();
  if (focus) { scrollTo(0, 0); $("item").focus({ preventScroll: true }); }
}

function refresh() {
  const left = unrated(), done = packet.items.length - left.length, locked = state.sheet !== null;
  $("bar").max = packet.items.length;
  $("bar").value = done;
  $("progress").textContent = locked ? "已锁定 locked" : `${done}/${packet.items.length} 已评 rated`;
  $("left").textContent = locked ? "评分已锁定。请下载评分文件并交回。Locked: download the sheet and return it."
    : left.length ? `还有 ${left.length} 题未评。${left.length} items are not rated yet.` : "全部评完。All is rated.";
  $("unrated").disabled = left.length === 0;
  [...$("jump").options].forEach((option, n) => { option.textContent = `${title(n)}${isRated(ITEMS[n]) ? " ✓" : ""}`; });
  $("jump").value = String(state.place);
  for (const id of ["save", "load", "sure"]) $(id).disabled = locked;
  $("load-label").hidden = locked;
  $("lock").hidden = locked;
  $("lock").disabled = !$("sure").checked || left.length > 0;
  $("download").hidden = !locked;
  document.body.classList.toggle("locked", locked);
}

function changed() {
  store();
  refresh();
}

function go(place) {
  show(place);
  store();
}

function nextUnrated() {
  const after = ITEMS.findIndex((item, n) => n > state.place && n >= PRACTICE && !isRated(item));
  const first = after < 0 ? ITEMS.findIndex((item, n) => n >= PRACTICE && !isRated(item)) : after;
  if (first >= 0) go(first);
}

// Files

function download(name, content) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function makeSheet() {
  const side = (rating) => ({ ...Object.fromEntries(dimensions.map(({ name }) => [name, rating[name]])), harm: rating.harm === true });
  const ratings = packet.items.map(({ id }) => {
    const { A, B, guess: guessed, comment: said } = state.ratings[id];
    return { item: id, A: side(A), B: side(B), guess: guessed, comment: wellFormed(said) };
  });
  const sheet = { format: packet.format, study: packet.study, rater: packet.rater, packet_sha256: packetHash, locked: true,
    finished: new Date().toISOString(), simulated: false, ratings };
  return { ...sheet, sha256: sha256(canonical(sheet)) };
}

function lock() {
  if (state.sheet || !$("sure").checked || unrated().length) return;
  state.sheet = makeSheet();
  show(state.place, false);
  store();
  download(`${packet.rater}.json`, state.sheet);
}

async function load(file) {
  let draft = null;
  try { draft = JSON.parse(await file.text()); } catch { /* said below */ }
  if (state.sheet) return;
  if (!isState(draft)) {
    notice("这不是本表的草稿,没有载入。This is no draft of this form; nothing was changed.");
    return;
  }
  const rated = Object.values(state.ratings).some(({ A, B, guess: guessed, comment: said }) => guessed || said || Object.keys({ ...A, ...B }).length);
  if (rated && !confirm("用草稿替换现在的评分?Replace the present ratings by the draft?")) return;
  state = { ...draft, sheet: null };
  notice("");
  show(state.place);
  store();
}

function start() {
  restore();
  $("rater").textContent = packet.rater;
  $("jump").append(...ITEMS.map((_, n) => make("option", { value: String(n) })));
  $("previous").addEventListener("click", () => go(state.place - 1));
  $("next").addEventListener("click", () => go(state.place + 1));
  $("unrated").addEventListener("click", nextUnrated);
  $("jump").addEventListener("change", () => go(Number($("jump").value)));
  $("save").addEventListener("click", () => download(`${packet.rater}-draft.json`, state));
  $("load").addEventListener("change", () => { if ($("load").files.length) load($("load").files[0]); $("load").value = ""; });
  $("sure").addEventListener("change", refresh);
  $("lock").addEventListener("click", lock);
  $("download").addEventListener("click", () => download(`${packet.rater}.json`, state.sheet));
  // The same form in another tab: what was rated there holds here too, and a lock there is a lock here.
  addEventListener("storage", (event) => {
    if (event.key !== STORE || !event.newValue) return;
    const kept = JSON.parse(event.newValue);
    if (isState(kept)) { state = { ...kept, place: state.place }; show(state.place, false); }
  });
  show(state.place, false);
  store();
}

start();
