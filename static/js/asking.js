// Asking: the question and an empty answer stand there at once, the server's rows replace them.
import * as composer from "./composer.js";
import { post } from "./http.js";
import { parse } from "./http.js";
import { deliver, resume } from "./outbox.js";
import * as scroll from "./scroll.js";
import { showStatus } from "./status.js";
import { streamOf } from "./stream.js";
import { addRows, main, running, sync } from "./transcript.js";

const rows = document.getElementById("transcript");
const pending = document.getElementById("pending");

export async function send(text) {
  const isHome = main.dataset.page === "home";
  return isHome ? startChat(text) : ask(text);
}

async function startChat(text) {
  composer.fill(text);
  composer.setBusy(true);
  try {
    const { url } = await deliver(composer.action(), text, waiting);
    composer.fill("");
    location.assign(url);
  } catch (problem) {
    refused(text, problem);
  }
  composer.setBusy(false);
}

async function ask(text) {
  composer.fill("");
  const isBusy = Boolean(running());
  const preview = isBusy ? [] : showPreview(text);
  try {
    const answer = await deliver(composer.action(), text, waiting);
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
  preview.length ? scroll.hold(swap) : swap();
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

function element(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}

function waiting() {
  composer.showError("The server cannot be reached. Your message is kept and sent again…");
}

// The text comes back, unless the person has begun to write something else.
function refused(text, problem) {
  if (!composer.text().trim()) composer.fill(text);
  composer.showError(problem.message, problem.retryAfter);
  composer.focus();
}

export async function stop() {
  const article = running();
  if (!article) return;
  streamOf(article.dataset.generation)?.freeze();
  try {
    await post(article.dataset.url, { _method: "delete" });
  } catch {
    composer.showError("The answer could not be stopped. Please try again.");
  }
}

export async function resumeSending() {
  if (await resume()) sync();
}
