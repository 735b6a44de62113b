// Asking: the question and an empty answer stand there at once, the server's rows replace them.
import * as composer from "./composer.js";
import { parse, post } from "./http.js";
import { deliver, push, takeStock } from "./outbox.js";
import * as scroll from "./scroll.js";
import { showStatus } from "./status.js";
import { streamOf } from "./stream.js";
import { toast } from "./toast.js";
import { addRows, main, running, stoppable, sync } from "./transcript.js";

const rows = document.getElementById("transcript");
const pending = document.getElementById("pending");
const unsent = document.getElementById("unsent");
const isHome = main?.dataset.page === "home";

export const send = (text) => (isHome ? startChat(text) : ask(text));

const letter = (text) => ({ url: composer.action(), text, draft: composer.draft() });

async function startChat(text) {
  composer.fill(text);
  composer.setBusy(true);
  let row = null;
  const onWait = () => {
    row ??= showUnsent(text);
    composer.withdraw(text);
    composer.setBusy(false);
    waiting();
  };
  try {
    arrive(await deliver(letter(text), onWait), text);
  } catch (problem) {
    refused(text, problem);
  }
  row?.remove();
  composer.setBusy(false);
}

// To the new chat, unless the person has begun to write something else.
function arrive({ url }, text) {
  composer.showError("");
  composer.withdraw(text);
  const go = () => location.assign(url);
  if (!composer.text().trim()) return go();
  toast("Your message was sent.", { action: "Open the chat", onAction: go });
}

async function ask(text) {
  composer.fill("");
  const preview = running() ? [showUnsent(text)] : showPreview(text);
  try {
    const answer = await deliver(letter(text), waiting);
    composer.showError("");
    show(answer, preview);
  } catch (problem) {
    scroll.hold(() => preview.forEach((node) => node.remove()));
    refused(text, problem);
  }
}

function show({ html, pending: held, version }, preview) {
  const swap = () => {
    preview.forEach((node) => node.remove());
    if (held) return hold(held, html);
    const [question] = addRows(html);
    if (question) scroll.toQuestion(question);
  };
  rows.contains(preview[0]) ? scroll.hold(swap) : swap();
  if (version) main.dataset.version = version;
}

function hold(id, html) {
  if (document.getElementById(`pending-${id}`)) return;
  pending.append(...[...parse(html).children].map((node) => document.adoptNode(node)));
}

function showPreview(text) {
  const question = element("article", "message message--user message--new");
  const bubble = element("div", "message__body message__bubble");
  bubble.dir = "auto";
  bubble.textContent = text;
  question.append(bubble, element("div", "message__foot"));
  const answer = element("article", "message message--assistant message--new");
  answer.append(element("div", "message__body"), element("div", "message__status"));
  showStatus(answer, { status: "running" });
  rows.append(question, answer);
  scroll.toQuestion(question);
  return [question, answer];
}

// The same look as _pending.html, without its buttons: the server does not have it yet.
function showUnsent(text) {
  const row = element("div", "pending pending--new");
  const icon = element("span", "icon icon--clock");
  icon.setAttribute("aria-hidden", "true");
  const words = element("p", "pending__text");
  words.textContent = text;
  row.append(icon, words);
  unsent.append(row);
  return row;
}

function element(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}

function waiting() {
  composer.showError("The server cannot be reached. Your message is kept and sent again…");
}

function refused(text, problem) {
  composer.giveBack(text);
  composer.showError(problem.message, problem.retryAfter);
  composer.focus();
}

export async function stop() {
  const article = stoppable();
  if (!article) return;
  streamOf(article.dataset.generation)?.freeze();
  try {
    await post(article.dataset.url, { _method: "delete" });
  } catch {
    composer.showError("The answer could not be stopped. Please try again.");
  }
}

// Sends what other pages, or this one before it was loaded again, did not bring to its end.
export async function resumeSending() {
  const { fresh, old } = takeStock();
  for (const entry of old) composer.giveBack(entry.text, entry.draft);
  const waitingRows = fresh.map(setAside);
  for (const [index, entry] of fresh.entries()) await resume(entry, waitingRows[index]);
}

const isFromHere = (entry) => entry.draft === composer.draft();

function setAside(entry) {
  composer.withdraw(entry.text, entry.draft);
  return isFromHere(entry) ? showUnsent(entry.text) : null;
}

async function resume(entry, row) {
  try {
    const answer = await push(entry, isFromHere(entry) ? waiting : () => {});
    if (isFromHere(entry)) await (isHome ? arrive(answer, entry.text) : arrived());
  } catch (problem) {
    if (isFromHere(entry)) refused(entry.text, problem);
    else composer.giveBack(entry.text, entry.draft);
  }
  row?.remove();
}

function arrived() {
  composer.showError("");
  return sync();
}
