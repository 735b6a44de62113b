// The rows of a chat: brought up to date from the server's own template, streams left alone.
import { enhance } from "./code.js";
import { fragment, parse } from "./http.js";
import { patchChildren, patchNode } from "./patch.js";
import * as scroll from "./scroll.js";
import { Stream, streamOf } from "./stream.js";
import { leaveFor } from "./toast.js";

export const main = document.getElementById("main");
const rows = document.getElementById("transcript");
const STOPPABLE = new Set(["queued", "loading", "running", "resuming"]);
let syncing = null;
let waiting = null;

const last = (is) => [...(rows?.querySelectorAll(".message--assistant") ?? [])].findLast(is) ?? null;

// An answer that has not ended; one that there is something left of to stop.
export const running = () => last(isActive);
export const stoppable = () => last(isStoppable);

function isStoppable(article) {
  return STOPPABLE.has(article.dataset.state);
}

function isActive(article) {
  return isStoppable(article) || article.dataset.state === "whole";
}

function changed() {
  document.dispatchEvent(new CustomEvent("transcript"));
}

// Starts the streams of rows that are being written; colours the code of the others.
export function adopt(root = rows) {
  for (const article of root.querySelectorAll(".message--assistant")) {
    if (!isActive(article)) enhance(article);
    else if (article.dataset.generation && !streamOf(article.dataset.generation)) new Stream(article);
  }
  changed();
}

export function addRows(html) {
  const made = [...parse(html).children].map((node) => document.adoptNode(node));
  for (const node of made) {
    const live = document.getElementById(node.id);
    if (live) live.remove();
    rows.append(node);
  }
  adopt();
  return made;
}

// The final row of an answer, once; what looks the same already is not touched.
export function finish(generation, html) {
  const stream = streamOf(generation);
  const live = rows?.querySelector(`[data-generation="${CSS.escape(generation)}"]`);
  stream?.end();
  const next = html && parse(html).firstElementChild;
  if (!live || !next) return void sync();
  scroll.settle(() => update(live, next));
  changed();
}

function update(live, next) {
  enhance(next);
  patchNode(live, next);
}

// One request at a time. A wish that comes meanwhile is granted by a second, begun after it.
export function sync() {
  if (!main?.dataset.transcript) return Promise.resolve();
  if (syncing) return (waiting ??= afterwards(syncing));
  syncing = bringUpToDate().finally(() => (syncing = null));
  return syncing;
}

async function afterwards(first) {
  await first.catch(() => {});
  waiting = null;
  return sync();
}

async function bringUpToDate(isSecond = false) {
  const fresh = await fragment(main.dataset.transcript).catch(gone);
  if (!fresh) return;
  const next = fresh.querySelector('[data-part="rows"]');
  if (Number(next.dataset.version) < Number(main.dataset.version)) {
    // Written before a question was sent that stands here by now: what else changed comes with it.
    return isSecond || main.dataset.version === "Infinity" ? undefined : bringUpToDate(true);
  }
  const change = running() ? scroll.settle : scroll.hold;
  change(() => merge(next));
  patchChildren(document.getElementById("pending"), fresh.querySelector('[data-part="pending"]'));
  main.dataset.version = next.dataset.version;
  showTitle(next.dataset.title);
  adopt();
}

// Deleted in another tab: there is nothing to show. In this one the sidebar knows what to do.
function gone(problem) {
  if (problem.status !== 404 || main.dataset.version === "Infinity") return;
  leaveFor("/", "This chat was deleted elsewhere.");
}

function merge(next) {
  const wanted = new Set();
  const articles = [...next.querySelectorAll(".message")]; // new ones move out of `next` below
  let place = rows.querySelector(".message");
  for (const article of articles) {
    wanted.add(article.dataset.message);
    const live = document.getElementById(article.id);
    if (live) mergeRow(live, article);
    const row = live ?? document.adoptNode(article);
    if (row !== place) rows.insertBefore(row, place);
    else place = row.nextElementSibling;
  }
  removeOthers(wanted, articles[0]?.id);
}

// Rows above the window were loaded on purpose and stay.
function removeOthers(wanted, first) {
  let isInWindow = false;
  for (const article of [...rows.querySelectorAll(".message")]) {
    isInWindow ||= article.id === first;
    const { message, generation } = article.dataset;
    if (!message || !isInWindow || wanted.has(message)) continue;
    streamOf(generation)?.end();
    article.remove();
  }
}

function mergeRow(live, next) {
  const stream = streamOf(live.dataset.generation);
  const isSame = live.dataset.generation === next.dataset.generation;
  if (isSame && isActive(next)) return; // it streams, or has ended since this was written
  stream?.end();
  update(live, next);
}

export function showTitle(title) {
  document.getElementById("chat-title").textContent = title;
  document.title = `${title} · Chatsite`;
}
