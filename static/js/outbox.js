// Messages on their way: kept until the server has them, sent again with the same client_id.
import { post, Refusal } from "./http.js";

const KEY = "outbox";
const HOUR = 3_600_000;

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch {
    return [];
  }
}

function write(entries) {
  localStorage.setItem(KEY, JSON.stringify(entries));
}

function forget(entry) {
  write(read().filter((one) => one.client_id !== entry.client_id));
}

export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

// Resolves with the server's answer; rejects with a Refusal when trying again is of no use.
export async function deliver(url, text, onWait = () => {}) {
  const entry = { url, text, client_id: newId(), user: document.body.dataset.user, at: Date.now() };
  write([...read(), entry]);
  return push(entry, onWait);
}

async function push(entry, onWait) {
  const { url, text, client_id } = entry;
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await post(url, { text, client_id });
      forget(entry);
      return answer;
    } catch (problem) {
      if (!(problem instanceof Refusal) || !problem.isPassing || attempt > 60) {
        forget(entry);
        throw problem;
      }
      onWait(problem);
      await pause(Math.min(30_000, 250 * 2 ** Math.min(attempt, 8)));
    }
  }
}

function pause(ceiling) {
  return new Promise((resolve) => {
    const wake = () => (clearTimeout(timer), removeEventListener("online", wake), resolve());
    const timer = setTimeout(wake, Math.max(200, Math.random() * ceiling));
    addEventListener("online", wake);
  });
}

// What a page that was closed or reloaded left behind; the same id makes a repeat harmless.
export async function resume() {
  const user = document.body.dataset.user;
  const left = read().filter((entry) => Date.now() - entry.at < HOUR && entry.user === user);
  write(left);
  for (const entry of left) await push(entry, () => {}).catch(() => {});
  return left.length > 0;
}
