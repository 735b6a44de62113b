// Scrolling: follow the answer only while the reader is pinned to the end, and never fight them.

const scroller = document.getElementById("scroller");
const room = document.getElementById("room");
const transcript = document.getElementById("transcript");
const jumps = document.getElementById("jumps");
const NEAR = 48;
const MARGIN = 16;

let isPinned = true;
let expected = -1; // where our own last write put it: a scroll to there is ours
let last = 0;
let anchor = null; // the question that stands near the top

const end = () => scroller.scrollHeight - scroller.clientHeight;

function write(top) {
  scroller.scrollTop = top;
  expected = last = scroller.scrollTop;
}

// From the start of what scrolls. Where it comes to rest: what arrives is drawn lower for a moment.
function topOf(element) {
  return element.offsetTop - scroller.offsetTop;
}

// Empty room below the answer, so that the question can stand near the top.
function makeRoom(least = 0) {
  if (!scroller) return;
  const content = transcript.offsetTop + transcript.offsetHeight;
  const wanted = anchor?.isConnected
    ? topOf(anchor) - MARGIN + scroller.clientHeight - (topOf(transcript) + transcript.offsetHeight)
    : 0;
  const height = Math.max(0, Math.floor(wanted), least - content);
  if (room.offsetHeight !== height) room.style.setProperty("height", `${height}px`);
}

export function toQuestion(question) {
  anchor = question;
  isPinned = true;
  makeRoom();
  write(end());
}

export function follow() {
  if (!scroller || !isPinned) return;
  makeRoom();
  if (end() - scroller.scrollTop > 0.5) write(end());
}

// Runs a change of the transcript without moving what the reader sees.
export function hold(change) {
  if (!scroller) return change();
  const top = scroller.scrollTop;
  change();
  makeRoom();
  if (end() < top) makeRoom(top + scroller.clientHeight);
  if (scroller.scrollTop !== top) write(top);
  showJumps();
}

// The same for the end of an answer: whoever stands at the end of the page stays there, so that
// the buttons that come with it can be seen. It only ever goes down.
export function settle(change) {
  hold(change);
  if (scroller && isPinned && end() > scroller.scrollTop) write(end());
}

export function toBottom() {
  isPinned = true;
  write(end());
  showJumps();
}

function toPreviousQuestion() {
  const questions = [...transcript.querySelectorAll(".message--user")];
  const above = questions.filter((one) => topOf(one) < scroller.scrollTop - 1).at(-1);
  isPinned = false;
  write(Math.max(0, topOf(above ?? questions[0] ?? transcript) - MARGIN));
}

function showJumps() {
  const below = topOf(transcript) + transcript.offsetHeight - scroller.scrollTop - scroller.clientHeight;
  jumps.hidden = below < 120;
}

function scrolled() {
  const top = scroller.scrollTop;
  const isOurs = Math.abs(top - expected) < 2;
  const isClamped = end() - top < 2; // the page grew shorter or the window taller
  if (!isOurs && !isClamped && top < last - 1) isPinned = false;
  if (!isOurs && top > last && end() - top < NEAR) isPinned = true;
  if (!isOurs) expected = -1;
  last = top;
  showJumps();
}

function unpin() {
  isPinned = false;
}

function touchedFrom(start) {
  const from = start.touches[0].clientY;
  const moved = (event) => event.touches[0].clientY > from + 2 && unpin();
  scroller.addEventListener("touchmove", moved, { passive: true });
  scroller.addEventListener("touchend", () => scroller.removeEventListener("touchmove", moved), {
    once: true,
  });
}

export function start() {
  if (!scroller) return;
  scroller.addEventListener("scroll", scrolled, { passive: true });
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && unpin(), { passive: true });
  scroller.addEventListener("touchstart", touchedFrom, { passive: true });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("textarea, input");
    if (!isTyping && ["PageUp", "Home", "ArrowUp"].includes(event.key)) unpin();
  });
  new ResizeObserver(() => (makeRoom(), isPinned && follow(), showJumps())).observe(scroller);
  jumps.addEventListener("click", (event) => {
    const to = event.target.closest("[data-jump]")?.dataset.jump;
    if (to === "bottom") toBottom();
    if (to === "question") toPreviousQuestion();
  });
  const target = location.hash.startsWith("#message-") && document.querySelector(location.hash);
  if (target) anchor = target.previousElementSibling ?? target;
  makeRoom();
  write(end());
  showJumps();
}
