// Writes over HTTP: a form with a CSRF token in, JSON or a refusal out.

export class Refusal extends Error {
  constructor(status, { code = "failed", message = "", retry_after: retryAfter = null } = {}) {
    super(message || sentenceFor(status));
    Object.assign(this, { status, code, retryAfter });
  }

  // Whether the same request may succeed later by itself.
  get isPassing() {
    return this.status === 0 || this.status === 502 || this.status === 504 ||
      (this.status === 503 && !["no_model", "too_busy"].includes(this.code));
  }

  // Whether the server may have done it all the same: only its answer is missing.
  get isUnclear() {
    return this.status === 0 || (this.status >= 500 && this.code !== "too_busy");
  }
}

function sentenceFor(status) {
  if (status === 0) return "The server cannot be reached.";
  if (status >= 500) return "Something went wrong on the server. Please try again.";
  return "The server could not do this. Please try again.";
}

function tokenField() {
  return document.querySelector("#row-actions [name=csrfmiddlewaretoken]");
}

// A line that breaks before or in the middle of an answer is a refusal like any other.
async function reached(work) {
  try {
    return await work;
  } catch {
    throw new Refusal(0, { code: "offline" });
  }
}

function send(url, fields) {
  const body = new URLSearchParams(fields);
  const headers = { Accept: "application/json", "X-CSRFToken": tokenField()?.value ?? "" };
  return reached(fetch(url, { method: "POST", body, headers, credentials: "same-origin" }));
}

// Logging in, here or in another tab, changes the token; a fresh page has the new one.
async function renewToken() {
  const page = await reached(fetch(location.href, { credentials: "same-origin" }));
  const fresh = parse(await reached(page.text()));
  const value = fresh.querySelector("#row-actions [name=csrfmiddlewaretoken]")?.value;
  if (value && tokenField()) tokenField().value = value;
  return Boolean(value);
}

export async function post(url, fields = {}) {
  let response = await send(url, fields);
  if (response.status === 403 && (await renewToken())) response = await send(url, fields);
  const isJson = response.headers.get("Content-Type")?.includes("json");
  const data = isJson ? await reached(response.json()) : {};
  if (!response.ok) throw new Refusal(response.status, data.error);
  return data;
}

export async function fragment(url) {
  const response = await reached(fetch(url, { credentials: "same-origin" }));
  if (!response.ok) throw new Refusal(response.status);
  return parse(await reached(response.text()));
}

// Markup made by our own templates; what a model wrote in it has been sanitised on the server.
// A template keeps the blanks at the start, which a document's parser drops: with them every
// node stands where it stands on the page, and patching finds its equal.
export function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}
