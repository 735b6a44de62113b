// Writes over HTTP: a form with a CSRF token in, JSON or a refusal out.

export class Refusal extends Error {
  constructor(status, { code = "failed", message = "", retry_after: retryAfter = null } = {}) {
    super(message || "The server could not do this. Please try again.");
    Object.assign(this, { status, code, retryAfter });
  }

  // Whether the same request may succeed later by itself.
  get isPassing() {
    return this.status === 0 || this.status === 502 || this.status === 504 ||
      (this.status === 503 && this.code !== "no_model") || this.status === 500;
  }
}

function tokenField() {
  return document.querySelector("#row-actions [name=csrfmiddlewaretoken]");
}

async function send(url, fields) {
  const body = new URLSearchParams(fields);
  const headers = { Accept: "application/json", "X-CSRFToken": tokenField()?.value ?? "" };
  try {
    return await fetch(url, { method: "POST", body, headers, credentials: "same-origin" });
  } catch {
    throw new Refusal(0, { code: "offline", message: "The server cannot be reached." });
  }
}

// Logging in, here or in another tab, changes the token; a fresh page has the new one.
async function renewToken() {
  const page = await fetch(location.href, { credentials: "same-origin" });
  const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
  const value = fresh.querySelector("#row-actions [name=csrfmiddlewaretoken]")?.value;
  if (value && tokenField()) tokenField().value = value;
  return Boolean(value);
}

export async function post(url, fields = {}) {
  let response = await send(url, fields);
  if (response.status === 403 && (await renewToken())) response = await send(url, fields);
  const isJson = response.headers.get("Content-Type")?.includes("json");
  const data = isJson ? await response.json() : {};
  if (!response.ok) throw new Refusal(response.status, data.error);
  return data;
}

export async function fragment(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok) throw new Refusal(response.status);
  return parse(await response.text());
}

// Markup made by our own templates; what a model wrote in it has been sanitised on the server.
export function parse(html) {
  return new DOMParser().parseFromString(html, "text/html").body;
}
