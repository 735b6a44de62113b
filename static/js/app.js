// Puts the parts together; each of them leaves a page without its elements alone.
import "./actions.js";
import "./details.js";
import "./password.js";
import "./shortcuts.js";
import "./suggestions.js";
import "./theme.js";
import * as asking from "./asking.js";
import * as composer from "./composer.js";
import * as scroll from "./scroll.js";
import * as sidebar from "./sidebar.js";
import * as socket from "./socket.js";
import { streamOf } from "./stream.js";
import * as transcript from "./transcript.js";

const { main } = transcript;
const network = document.getElementById("network");
const trouble = { offline: "", away: "" }; // in words, until it is over
let lost = null;
let reloading = null;

function deliverFrames() {
  socket.on("delta", (frame) => streamOf(frame.generation)?.delta(frame));
  socket.on("state", (frame) => streamOf(frame.generation)?.state(frame));
  socket.on("reset", (frame) => streamOf(frame.generation)?.reset(frame));
  socket.on("end", (frame) => transcript.finish(frame.generation, frame.html));
  socket.on("chat", ({ version }) => version > Number(main.dataset.version) && transcript.sync());
  socket.on("chats", () => sidebar.refresh().catch(() => {}));
  socket.on("error", ({ generation, code }) => {
    if (code === "not_found" && streamOf(generation)) transcript.sync();
  });
}

function showNetwork() {
  socket.on("hello", ({ protocol }) => {
    if (protocol > socket.PROTOCOL) reloading ??= setTimeout(reloadWhenFree);
    clearTimeout(lost);
    lost = null;
    tell({ offline: "", away: "" });
  });
  socket.on("offline", () => {
    lost ??= setTimeout(() => tell({ offline: "Reconnecting…" }), 1200);
  });
  socket.on("pong", ({ away }) => tell({ away: away ? "Waiting for the database…" : "" }));
  socket.on("session over", () => reload("session"));
}

function tell(changed) {
  Object.assign(trouble, changed);
  const words = trouble.offline || trouble.away;
  if (network.textContent !== words) network.textContent = words;
}

// Drafts and messages on their way outlive it; what is being edited would not.
function reloadWhenFree() {
  const isBusy = document.querySelector(".edit[open], dialog[open]");
  reloading = isBusy ? setTimeout(reloadWhenFree, 1000) : null;
  if (!isBusy) reload("protocol");
}

function reload(reason) {
  const last = Number(sessionStorage.getItem(`reloaded for ${reason}`));
  if (Date.now() - last < 60_000) return;
  sessionStorage.setItem(`reloaded for ${reason}`, Date.now());
  location.reload();
}

function listen() {
  deliverFrames();
  showNetwork();
  if (main.dataset.chat) {
    const { chat } = main.dataset;
    socket.watchChat(() => ({ chat, version: Number(main.dataset.version) }));
  }
  if (document.body.dataset.user) socket.connect();
}

function escape(event) {
  if (event.key !== "Escape" || event.shiftKey || event.isComposing || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]") || event.target.closest?.("[data-edit-form]")) return;
  const menu = document.querySelector("details.menu[open]");
  if (menu) menu.open = false;
  else if (!sidebar.closeDrawer()) asking.stop();
}

function countDown(element) {
  const timer = setInterval(() => {
    const left = Number(element.textContent) - 1;
    element.textContent = Math.max(0, left);
    if (left <= 0) clearInterval(timer);
  }, 1000);
}

sidebar.start();
document.querySelectorAll("[data-countdown]").forEach(countDown);
if (main?.dataset.page) {
  document.addEventListener("keydown", escape);
  document.addEventListener("transcript", () =>
    composer.showRunning(Boolean(transcript.stoppable())),
  );
  composer.start({ onSend: asking.send, onStop: asking.stop });
  listen();
  if (main.dataset.chat) {
    scroll.start();
    transcript.adopt();
    scroll.follow();
  }
  asking.resumeSending();
}
