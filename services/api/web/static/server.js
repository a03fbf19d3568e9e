// The server's routes, the key, and errors that say what to do next.

import { events } from "./sse.js";

const KEY = "medthink.key";

export class ServerError extends Error {
  constructor(message, { code = "other", status = 0, requestId = null } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.requestId = requestId;
  }

  /** Whether the server may answer the same request later. */
  get passes() { return this.status === 0 || this.status === 502 || this.status === 503; }
}

function fromEnvelope(body, status) {
  const error = body?.error ?? {};
  const message = typeof error.message === "string" ? error.message : `HTTP ${status}`;
  return new ServerError(message, { code: error.code ?? "other", status, requestId: error.request_id ?? null });
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  // Errors come in the language of the page, which the reader may have switched.
  const language = { "accept-language": document.documentElement.lang };
  return key ? { authorization: `Bearer ${key}`, ...language, ...more } : { ...language, ...more };
}

let askForKey = null;

/** `ask()` resolves to a key, or null when the reader gives none. */
export function onMissingKey(ask) { askForKey = ask; }

async function request(path, options = {}, mayAsk = true) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(String(error.message ?? error), { code: "offline" });
  }
  if (response.ok) return response;
  if (response.status === 401 && mayAsk && askForKey) {
    sessionStorage.removeItem(KEY);
    const key = await askForKey();
    if (key) {
      sessionStorage.setItem(KEY, key);
      return request(path, options);
    }
  }
  throw fromEnvelope(await response.json().catch(() => null), response.status);
}

const json = async (path, options, mayAsk) => (await request(path, options, mayAsk)).json();
const post = (body, more = {}) => ({
  method: "POST", body: JSON.stringify(body), ...more, headers: { "content-type": "application/json", ...more.headers },
});
const sessionPath = (id) => `/v1/sessions/${encodeURIComponent(id)}`;

export const models = async () => (await json("/v1/models")).data;
export const sessions = (cursor) => json(`/v1/sessions?limit=50${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
export const session = (id) => json(sessionPath(id));
export const createSession = (metadata) => json("/v1/sessions", post({ metadata }));
export const deleteSession = (id) => json(sessionPath(id), { method: "DELETE" });

export async function isReady() {
  try {
    return (await fetch("/readyz", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** Chunks of a streamed turn. Throws `ServerError`, also when the stream ends before it is done. */
export async function* chat(body, signal, idempotencyKey) {
  const wanted = { stream: true, annotate_reasoning: true, ...body };
  const response = await request("/v1/chat/completions", post(wanted, { signal, headers: { "idempotency-key": idempotencyKey } }));
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw fromEnvelope(chunk, response.status === 200 ? 503 : response.status);
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError(String(error.message ?? error), { code: "offline" });
  }
  throw new ServerError("the stream ended too early", { code: "offline" });
}
