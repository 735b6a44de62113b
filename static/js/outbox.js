// Messages on their way: kept until the server has them, sent again with the same client_id.
import { post, Refusal } from "./http.js";
import { pauseAfter } from "./pause.js";

const KEY = "outbox";
const HOUR = 3_600_000;
let unclear = null; // went back to its writer, and yet the server may have it

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
// `draft` names the page whose box the text is from.
export async function deliver({ url, text, draft }, onWait) {
  const isSame = unclear?.url === url && unclear.text === text;
  const client_id = isSame ? unclear.client_id : newId();
  const { user } = document.body.dataset;
  const entry = { url, text, draft, client_id, user, at: Date.now() };
  write([...read(), entry]);
  return push(entry, onWait);
}

export async function push(entry, onWait) {
  const { url, text, client_id } = entry;
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await post(url, { text, client_id });
      forget(entry);
      unclear = null; // the same words again are then meant as a second message
      return answer;
    } catch (problem) {
      if (!(problem instanceof Refusal) || !problem.isPassing || attempt > 60) {
        forget(entry);
        unclear = problem.isUnclear ? entry : null;
        throw problem;
      }
      onWait(problem);
      await pause(attempt);
    }
  }
}

function pause(failures) {
  return new Promise((resolve) => {
    const wake = () => (clearTimeout(timer), removeEventListener("online", wake), resolve());
    const timer = setTimeout(wake, pauseAfter(failures));
    addEventListener("online", wake);
  });
}

// What pages that were closed or reloaded left behind, the old apart from what may still be sent.
export function takeStock() {
  const { user, guest } = document.body.dataset;
  // A guest is made by the first send: before, the same person was nobody.
  const isMine = (entry) => entry.user === user || (guest !== undefined && !entry.user);
  const mine = read().filter(isMine);
  const isFresh = (entry) => Date.now() - entry.at < HOUR;
  const fresh = mine.filter(isFresh);
  write(fresh);
  return { fresh, old: mine.filter((entry) => !isFresh(entry)) };
}
