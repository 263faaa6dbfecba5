// What the page asks its server: JSON, files and events, with the token where one is needed.

const KEY = "sdcpp-token";
let token = sessionStorage.getItem(KEY) ?? "";
let askForToken = null;
let asked = null; // the one question under way: many requests may be refused at once

/** What the server refused, in one line that says what to do. */
export class ServerError extends Error {
  constructor(message, status, kind = "") {
    super(message);
    this.status = status;
    this.kind = kind;
  }
}

/** Have a function asked for the token when the server refuses; it is told whether one was refused. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Return where a path of the server's lies: below this page, which a proxy may have put under a path of its own. */
const here = (path) => path.replace(/^\//, "");

/** Ask the server; the answer is one that it gives, or a ServerError is thrown. */
export async function request(path, options = {}) {
  const sent = token;
  let response;
  try {
    const authorization = sent ? { authorization: `Bearer ${sent}` } : {};
    response = await fetch(here(path), { ...options, headers: { ...options.headers, ...authorization } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server does not answer; is it still running?", 0);
  }
  if (response.status === 401 && askForToken) {
    if (sent === token) {
      asked ??= askForToken(sent !== "").finally(() => (asked = null));
      token = await asked;
      sessionStorage.setItem(KEY, token);
    }
    return request(path, options);
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    const message = said.error?.message ?? `the server answered with status ${response.status}`;
    throw new ServerError(message, response.status, said.error?.type);
  }
  return response;
}

// Seeds have up to 63 bits, and JavaScript's numbers 53: beyond that they are BigInts.
const exact = (_, value, context) =>
  typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "")
    ? BigInt(context.source)
    : value;

function raw(_, value) {
  if (typeof value !== "bigint") return value;
  if (!JSON.rawJSON) throw new ServerError(`this browser cannot send a number as large as ${value}`, 0);
  return JSON.rawJSON(String(value));
}

/** Return JSON of the server's. */
const parse = (text) => JSON.parse(text, exact);

/** Get JSON. */
export const get = async (path) => parse(await (await request(path)).text());

/** Post JSON, and return the answer's. */
export async function post(path, body) {
  const options = { method: "POST", headers: { "content-type": "application/json" } };
  if (body !== undefined) options.body = JSON.stringify(body, raw);
  return parse(await (await request(path, options)).text());
}

/** Post one file, and return the answer's JSON. */
export async function postFile(path, name, file) {
  const body = new FormData();
  body.append(name, file);
  return parse(await (await request(path, { method: "POST", body })).text());
}

/** Have something removed. */
export const remove = (path) => request(path, { method: "DELETE" });

const files = new Map();

/** Return the address of a file for an element; with a token, which elements cannot send, it is fetched before. */
export async function address(path) {
  if (!token) return here(path);
  if (!files.has(path)) {
    files.set(
      path,
      request(path).then(async (response) => URL.createObjectURL(await response.blob())),
    );
    files.get(path).catch(() => files.delete(path));
    if (files.size > 300) {
      const [oldest, url] = files.entries().next().value;
      files.delete(oldest);
      url.then(URL.revokeObjectURL, () => {});
    }
  }
  return files.get(path);
}

/** Yield the events of one connection as {kind, data}, "open" first; EventSource cannot send a token. */
export async function* events(path, signal) {
  const response = await request(path, { signal });
  yield { kind: "open", data: {} };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split(/\r?\n\r?\n/);
    text = parts.pop();
    for (const part of parts) {
      const found = {};
      for (const line of part.split(/\r?\n/)) {
        const [, name, said] = line.match(/^([a-z]+): ?(.*)$/) ?? [];
        if (name) found[name] = said;
      }
      if (found.data) yield { kind: found.event, data: parse(found.data) };
    }
  }
}
