// One turn as the reader sees it: question, banner, thought, answer, label, actions.

import { render } from "./markdown.js";
import { label, say } from "./words.js";

// An urgent sentence of the guard is a paragraph of its own, first or last. Whether it was the guard's is known at the end
// (`safety`); until then a first paragraph that reads like one is shown as the banner: better early than late.
const URGENT = /急诊|120|12356|立即就医|立即前往|emergency|\b911\b|\b988\b|crisis line/i;
const AMENDING = ["missing_emergency_advice", "self_harm"];

function make(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export class Turn {
  /** `on.retry(turn)`, `on.announce(text)`. */
  constructor(question, on) {
    this.question = question;
    this.answer = "";
    this.reasoning = "";
    this.on = on;
    this.begun = performance.now();
    this.node = make("li", "turn");
    const asked = make("div", "question");
    asked.append(make("span", "visually-hidden", label(make("span"), "you"), ": "), make("p", "", question));
    this.banner = make("div", "banner");
    this.banner.hidden = true;
    this.summary = make("summary", "", make("span", "mark"));
    this.title = this.summary.appendChild(make("span"));
    this.thought = make("div", "thought-text");
    this.fold = make("details", "thought", this.summary, this.thought);
    this.fold.hidden = true;
    this.summary.addEventListener("click", () => { this.touched = true; });
    this.waiting = make("p", "waiting", make("span", "mark"), label(make("span"), "waiting"));
    this.body = make("div", "answer");
    this.state = make("p", "state");
    this.state.hidden = true;
    this.foot = make("footer", "foot");
    this.reply = make("article", "reply", this.banner, this.fold, this.waiting, this.body, this.state, this.foot);
    this.reply.dataset.label = "assistant";
    this.reply.setAttribute("aria-label", say("assistant"));
    this.reply.setAttribute("aria-busy", "true");
    this.node.append(asked, this.reply);
  }

  // While it is written

  take(chunk) {
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (chunk.safety?.replace !== undefined) {
      this.block(chunk.safety.replace);
    } else {
      if (delta.reasoning_content) this.think(delta.reasoning_content);
      if (delta.content) this.write(delta.content);
    }
    if (chunk.thinking_truncated) this.cut = true;
    if (chunk.safety) this.safety = chunk.safety;
  }

  think(text) {
    if (!this.reasoning) {
      this.fold.hidden = false;
      this.fold.open = true;
      label(this.title, "thinking");
      this.fold.classList.add("running");
      this.waiting.hidden = true;
    }
    this.reasoning += text;
    this._paint();
  }

  write(text) {
    if (!this.answer) {
      this.waiting.hidden = true;
      this._closeThought();
    }
    this.answer += text;
    this.on.announce(text);
    this._paint();
  }

  /** The guard took back what was shown. */
  block(text) {
    this._closeThought();
    this.blocked = true;
    this.reasoning = "";
    this.fold.hidden = true;
    this.waiting.hidden = true;
    this.answer = text;
    this.on.announce(text);
    this._paint();
  }

  finish() {
    this.over = true;
    this._end();
    this.on.announce(say("answered"));
  }

  /** It ended without its end: "stopped" by the reader, or "broken". */
  breakOff(why) {
    this.over = true;
    this.incomplete = why;
    this._end();
  }

  fail(error) {
    this.over = true;
    const step = error.code === "offline" ? say("offline") : (say("steps")[error.code] ?? say("steps").other);
    const box = make("div", "failure", label(make("strong"), "errorTitle"));
    box.setAttribute("role", "alert");
    if (error.code !== "offline") box.append(make("p", "", error.message));
    box.append(make("p", "", step));
    if (error.requestId) box.append(make("p", "note", label(make("span"), "requestId"), ": ", make("code", "", error.requestId)));
    if (this.answer || this.reasoning) this.incomplete = "broken";
    this._end();
    this.reply.insertBefore(box, this.foot);
  }

  /** A stored turn. */
  static stored(turn, on) {
    const asked = turn.messages.filter((m) => m.role === "user").map((m) => m.content).join("\n\n");
    const made = new Turn(asked, on);
    made.begun = null;
    made.answer = turn.answer ?? "";
    made.safety = turn.safety;
    made.blocked = turn.status === "blocked";
    made.cut = turn.thinking_truncated;
    made.over = true;
    if (turn.reasoning && !made.blocked) {
      made.reasoning = turn.reasoning;
      made.fold.hidden = false;
      label(made.title, "thought");
    }
    if (turn.status === "aborted" || turn.status === "pending") made.incomplete = "broken";
    made._end();
    return made;
  }

  // Painting

  _closeThought() {
    if (this.closed || !this.reasoning) return;
    this.closed = true;
    this.fold.classList.remove("running");
    if (this.begun !== null) label(this.title, "thoughtFor", String(Math.max(1, Math.round((performance.now() - this.begun) / 1000))));
    if (!this.touched) this.fold.open = false;
  }

  _end() {
    this._closeThought();
    this.fold.classList.remove("running");
    this.waiting.hidden = true;
    this.reply.setAttribute("aria-busy", "false");
    this._paintNow();
    if (this.cut && !this.fold.hidden) this.summary.append(label(make("span", "note"), "cut"));
    if (this.blocked || this.incomplete) {
      label(this.state, this.blocked ? "blocked" : this.incomplete);
      this.state.hidden = false;
    }
    this._foot();
  }

  _foot() {
    const buttons = make("div", "actions");
    if (this.answer) {
      const copy = label(make("button", "quiet"), "copy");
      copy.type = "button";
      copy.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(this.answer);
          label(copy, "copied");
        } catch {
          label(copy, "copyFailed");
        }
        setTimeout(() => label(copy, "copy"), 2000);
      });
      buttons.append(copy);
    }
    const retry = label(make("button", "quiet retry"), "retry");
    retry.type = "button";
    retry.addEventListener("click", () => this.on.retry(this));
    buttons.append(retry);
    this.foot.replaceChildren(buttons);
    if (this.answer) this.foot.prepend(label(make("p", "ai-label"), "aiLabel"));
  }

  _paint() {
    if (this.painting) return;
    this.painting = requestAnimationFrame(() => this._paintNow());
  }

  _paintNow() {
    cancelAnimationFrame(this.painting);
    this.painting = null;
    if (this.reasoning !== this.paintedReasoning) this.thought.replaceChildren(render(this.reasoning));
    this.paintedReasoning = this.reasoning;
    const { urgent, rest } = this._urgent();
    this.banner.hidden = !urgent;
    if (urgent && this.banner.dataset.urgent !== urgent) {
      this.banner.dataset.urgent = urgent;
      this.banner.setAttribute("role", this.begun === null ? "note" : "alert");
      this.banner.replaceChildren(label(make("strong"), "urgent"), make("p", "", urgent));
    }
    this.body.replaceChildren(render(rest));
    this.reply.classList.toggle("blocked", Boolean(this.blocked));
    this.on.painted?.();
  }

  /** The guard's urgent sentences, and the answer without them. */
  _urgent() {
    const parts = this.answer.split("\n\n");
    if (this.blocked) return { urgent: URGENT.test(this.answer) ? this.answer : "", rest: URGENT.test(this.answer) ? "" : this.answer };
    if (this.over && !(this.safety?.verdict === "amend" && this.safety.rules?.some((rule) => AMENDING.includes(rule)))) {
      return { urgent: "", rest: this.answer };
    }
    const front = [];
    while (parts.length > 1 && front.length < 2 && parts[0].length < 300 && URGENT.test(parts[0])) front.push(parts.shift());
    const back = [];
    if (this.over && !front.length) {
      while (parts.length > 1 && back.length < 2 && parts.at(-1).length < 300 && URGENT.test(parts.at(-1))) back.unshift(parts.pop());
    }
    return { urgent: [...front, ...back].join("\n"), rest: parts.join("\n\n") };
  }
}
