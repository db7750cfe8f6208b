// What goes over the wire: requests that are tried again where that does no harm, and streams that resume by themselves.

/** An error that the server told of, or would have: what cannot stand in a path is not sent. `code` is stable, `message` for people, `details` for programs. */
export class OutriderError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the server answered ${status}`);
    this.name = "OutriderError";
    this.status = status;
    this.code = problem.code;
    this.details = problem.details ?? null;
    this.requestId = problem.request_id ?? null;
  }
}

/** The server could not be reached, or what answered is no server of Outrider. */
export class ServerError extends Error {
  constructor(code, message, cause) {
    super(message, { cause });
    this.name = "ServerError";
    this.code = code;
  }
}

const LATER = new Set([408, 429, 500, 502, 503, 504]);
const FINAL = new Set(["task_ended", "task_deleted", "session_deleted"]);
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 2000;

/** An id such as `task_...`, so that what is created is created once however often it is asked for. */
export function newId(noun) {
  const now = Date.now().toString(16).padStart(12, "0");
  const random = crypto.randomUUID().replaceAll("-", "");
  return `${noun}_${now}7${random.slice(13, 32)}`.slice(0, noun.length + 33);
}

/** An id or a number as a part of a path; throws an OutriderError for what cannot be one, before anything is sent. */
export function part(name, value) {
  const text = typeof value === "number" ? String(value) : value;
  if (typeof text !== "string" || leadsAway(text)) {
    throw refused("invalid_arguments", `${name} is no part of a path: ${JSON.stringify(value)}`);
  }
  return encodeURIComponent(text);
}

/** The path of a file as the end of one; throws an OutriderError as `part` does. */
export function parts(path) {
  const found = typeof path === "string" ? path.replace(/^\/+|\/+$/g, "").split("/") : [""];
  if (found.some(leadsAway)) {
    throw refused("invalid_path", `${JSON.stringify(path)} is not a plain path within the session's files`);
  }
  return found.map(encodeURIComponent).join("/");
}

/** Whether a part of a path would have `fetch` ask for another route than was meant, or is no text. */
function leadsAway(text) {
  return /^(\.|%2e){0,2}$/i.test(text) || /\p{Surrogate}/u.test(text);
}

function refused(code, detail) {
  return new OutriderError(422, { code, detail });
}

export class Transport {
  /** `url` is `http://host:port`; `key` an API key; `patience` how many milliseconds a server is waited for. */
  constructor(url, { key, patience = 60000, silence = 45000, fetch: how } = {}) {
    this.url = String(url).replace(/\/+$/, "").replace(/\/v1$/, "");
    this.patience = patience;
    this.silence = silence;
    this.fetch = how ?? globalThis.fetch.bind(globalThis);
    this.headers = key === undefined ? {} : { authorization: `Bearer ${key}` };
  }

  async request(method, path, { query, body, raw, headers, again, binary, signal } = {}) {
    const sent = { accept: "application/json", ...this.headers, ...defined(headers) };
    let content = raw;
    if (body !== undefined) {
      content = JSON.stringify(body);
      sent["content-type"] = "application/json";
    }
    const send = () =>
      this.fetch(this.url + path + queryOf(query), { method, headers: sent, body: content, signal, redirect: "manual" });
    return this.#tried(again, signal, send, async (answer) => {
      if (!isOf(answer, "application/json") && !answer.headers.has("x-request-id")) throw await foreign(answer, this.url);
      if (answer.status === 204) return undefined;
      if (binary) return new Uint8Array(await answer.arrayBuffer());
      const told = await jsonOf(answer);
      if (told === undefined) throw await foreign(answer, this.url);
      return told;
    });
  }

  /** Yield the events of a stream, each once, through any cut, until the end that is final. */
  async *stream(path, { after, signal } = {}) {
    let last = after;
    let made; // when what is followed was: an id may be given again
    let since; // the first cut in a row
    let pause = FIRST_PAUSE;
    for (;;) {
      signal?.throwIfAborted();
      const stop = new AbortController();
      const leave = () => stop.abort(signal.reason);
      signal?.addEventListener("abort", leave);
      let watch;
      let opened = Infinity;
      let silent = 0;
      let cut = "its streams end as soon as they begin";
      const live = () => {
        clearTimeout(watch);
        watch = setTimeout(() => {
          silent = this.silence;
          stop.abort();
        }, this.silence);
      };
      try {
        const headers = { accept: "text/event-stream", ...this.headers };
        if (last !== undefined) headers["last-event-id"] = String(last);
        const send = () => this.fetch(this.url + path, { headers, signal: stop.signal, redirect: "manual" });
        const answer = await this.#tried(true, signal, send, async (given) => {
          if (!isOf(given, "text/event-stream")) throw await foreign(given, this.url);
          return given;
        });
        opened = Date.now();
        const before = made;
        made = answer.headers.get("created-at") ?? made;
        if (before !== undefined && made !== before) {
          throw new OutriderError(404, {
            code: "not_found",
            detail: `what ${path} told of was deleted, and another one has its id`,
          });
        }
        live();
        for await (const event of eventsOf(answer.body, live)) {
          if (event.event === "end") {
            const { reason } = JSON.parse(event.data);
            if (FINAL.has(reason)) return reason;
            break;
          }
          if (event.data === "") continue;
          last = Number(event.id);
          since = undefined;
          pause = FIRST_PAUSE;
          yield { event: event.event, id: last, data: JSON.parse(event.data) };
        }
      } catch (error) {
        if (signal?.aborted || error instanceof OutriderError || error instanceof ServerError) throw error;
        cut = error;
      } finally {
        clearTimeout(watch);
        signal?.removeEventListener("abort", leave);
        stop.abort();
      }
      const now = Date.now();
      if (now - silent - opened > LONGEST_PAUSE) {
        since = undefined; // it was there, and had nothing to tell
        pause = FIRST_PAUSE;
      }
      since ??= now;
      if (now - since > this.patience) throw unreachable(this.url, cut);
      await sleep(pause * (0.5 + Math.random() / 2), signal);
      pause = Math.min(pause * 2, LONGEST_PAUSE);
    }
  }

  /** What `read` makes of the answer. Reading is part of a try: where it is cut off the request is sent again. */
  async #tried(again, signal, send, read) {
    let until; // patience begins with the first failure: a request that waits for news has used none of it
    for (let pause = FIRST_PAUSE; ; pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      let failed;
      let after = 0;
      try {
        const answer = await send();
        if (answer.ok) return await read(answer);
        failed = await told(answer, this.url);
        const passing = LATER.has(answer.status) && failed.code !== "internal";
        if (!passing || !(again || answer.status === 408 || answer.status === 429)) throw failed;
        after = pauseOf(answer.headers.get("retry-after"));
      } catch (error) {
        if (error === failed || error instanceof ServerError || signal?.aborted || !again) {
          throw error instanceof TypeError ? unreachable(this.url, error) : error;
        }
        failed = unreachable(this.url, error);
      }
      const now = Date.now();
      until ??= now + this.patience;
      if (now >= until || now + after > until) throw failed;
      await sleep(after > 0 ? after : pause * (0.5 + Math.random() / 2), signal);
    }
  }
}

async function told(answer, url) {
  if (isOf(answer, "application/problem+json")) {
    const problem = await jsonOf(answer);
    if (problem?.code !== undefined) return new OutriderError(answer.status, problem);
  }
  return foreign(answer, url);
}

/** The error for an answer that no server of Outrider gives; its body is not read on. */
async function foreign(answer, url) {
  if (!answer.bodyUsed) await answer.body?.cancel();
  const away = answer.status === 502 || answer.status === 503 || answer.status === 504;
  const told = `${url} answered ${answer.status}, and not as a server of Outrider does`;
  return away ? new ServerError("server_unreachable", told) : new ServerError("server_foreign", `${told}: is the address right?`);
}

function isOf(answer, type) {
  return (answer.headers.get("content-type") ?? "").toLowerCase().startsWith(type);
}

/** The JSON of an answer, undefined where it is none. Throws a TypeError where the answer is cut off. */
async function jsonOf(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The milliseconds that Retry-After asks for, as a number of seconds or a date. */
function pauseOf(told) {
  const seconds = Number(told);
  return (Number.isNaN(seconds) ? Date.parse(told) - Date.now() : seconds * 1000) || 0;
}

function unreachable(url, cause) {
  return new ServerError("server_unreachable", `the server at ${url} cannot be reached: ${cause?.message ?? cause}`, cause);
}

async function* eventsOf(body, live) {
  const decoder = new TextDecoder();
  let rest = "";
  let event = { event: "message", id: "", data: "" };
  let data = [];
  for await (const chunk of body) {
    live();
    rest += decoder.decode(chunk, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) yield { ...event, data: data.join("\n") };
        event = { ...event, event: "message" };
        data = [];
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "data") data.push(value);
      else if (name === "event" || name === "id") event[name] = value;
    }
  }
}

function queryOf(query) {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(defined(query))) {
    for (const each of Array.isArray(value) ? value : [value]) said.append(name, String(each));
  }
  const text = said.toString();
  return text === "" ? "" : `?${text}`;
}

function defined(given) {
  return Object.fromEntries(Object.entries(given ?? {}).filter(([, value]) => value !== undefined && value !== null));
}

/** Sleep, and throw the reason of the signal as soon as it is aborted. */
function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const leave = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", leave, { once: true });
  });
}
