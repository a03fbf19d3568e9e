// The list of sessions: open, delete, more.

import * as server from "./server.js";
import { label, say } from "./words.js";

const list = document.getElementById("session-list");
const note = document.getElementById("session-note");

/** Draws the list. `on.open(id)`, `on.deleted(id)`, `on.failed(error)`. Returns false on a server that keeps none. */
export async function drawSessions(current, on, cursor = null) {
  let page;
  try {
    page = await server.sessions(cursor);
  } catch (error) {
    if (error.code === "unsupported_parameter" || error.status === 404) {
      list.replaceChildren();
      tell("noMemory");
      return false;
    }
    if (error.status !== 401) on.failed(error);
    return true;
  }
  if (!cursor) list.replaceChildren();
  list.querySelector(".more")?.remove();
  for (const session of page.data) list.append(row(session, current, on));
  if (page.next_cursor) {
    const more = label(document.createElement("button"), "more");
    more.type = "button";
    more.className = "quiet";
    more.addEventListener("click", () => drawSessions(current, on, page.next_cursor));
    const item = document.createElement("li");
    item.className = "more";
    item.append(more);
    list.append(item);
  }
  if (list.children.length) note.hidden = true;
  else tell("none");
  return true;
}

function tell(name) {
  label(note, name);
  note.hidden = false;
}

function row(session, current, on) {
  const title = typeof session.metadata?.title === "string" ? session.metadata.title : "";
  const item = document.createElement("li");
  const open = document.createElement("a");
  open.href = `#${encodeURIComponent(session.id)}`;
  if (title) open.textContent = title;
  else label(open, "untitled");
  open.title = open.textContent;
  if (session.id === current) open.setAttribute("aria-current", "page");
  const remove = document.createElement("button");
  remove.type = "button";
  remove.className = "remove";
  const calm = () => {
    remove.textContent = "×";
    remove.classList.remove("sure");
    remove.setAttribute("aria-label", say("remove", title || say("untitled")));
  };
  calm();
  remove.addEventListener("blur", calm);
  // Two presses: the first asks, and looking away takes it back.
  remove.addEventListener("click", async () => {
    if (!remove.classList.contains("sure")) {
      remove.classList.add("sure");
      remove.textContent = say("removeSure");
      remove.setAttribute("aria-label", say("removeSure"));
      return;
    }
    try {
      await server.deleteSession(session.id);
      const next = item.nextElementSibling ?? item.previousElementSibling;
      item.remove();
      (next?.querySelector("a") ?? document.getElementById("new")).focus();
      if (!list.children.length) tell("none");
      on.deleted(session.id);
    } catch (error) {
      on.failed(error);
    }
  });
  item.append(open, remove);
  return item;
}
