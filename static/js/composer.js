// The box one writes in: its height, its keys, its draft.

const form = document.getElementById("composer");
const field = document.getElementById("composer-text");
const sendButton = form?.querySelector(".composer__send");
const stopButton = form?.querySelector("[data-stop]");
const error = document.getElementById("composer-error");
const isTouch = matchMedia("(pointer: coarse) and (hover: none)").matches;
// By person: the next one at this browser must not find what this one was writing. Only a guest
// takes over what nobody wrote: a guest is made by the first send.
const mine = `draft:${document.body.dataset.user ?? ""}:`;
const nobodys = "draft::";
const isGuest = "guest" in document.body.dataset;
const page = form?.dataset.draft;
const draftKey = mine + page;
for (const key of Object.keys(localStorage)) {
  if (!key.startsWith("draft:") || key.startsWith(mine)) continue;
  if (isGuest && key.startsWith(nobodys)) {
    localStorage.setItem(mine + key.slice(nobodys.length), localStorage.getItem(key));
  }
  localStorage.removeItem(key);
}
let countdown = null;

export const text = () => field.value;
export const draft = () => page;

export function fill(value) {
  field.value = value;
  changed();
}

// A text that was not sent goes back to its page's box, in front of what is written there.
export function giveBack(value, to = page) {
  const written = to === page ? field.value : localStorage.getItem(mine + to) ?? "";
  const isThere = !written.trim() || written.trim() === value.trim();
  const both = isThere ? value : `${value}\n\n${written}`;
  if (to === page) fill(both);
  else localStorage.setItem(mine + to, both);
}

// A text that the outbox has must not stand in a box as if it were still to be sent.
export function withdraw(value, from = page) {
  if (from === page && field.value.trim() === value.trim()) fill("");
  const written = localStorage.getItem(mine + from);
  if (from !== page && written?.trim() === value.trim()) localStorage.removeItem(mine + from);
}

export function focus() {
  if (field && !isTouch) field.focus({ preventScroll: true });
}

export function showError(message, retryAfter = null) {
  clearInterval(countdown);
  countdown = null;
  error.textContent = message;
  if (!retryAfter) return;
  let left = retryAfter;
  const reason = message.replace(/ Please .*/, "");
  const show = () => (error.textContent = `${reason} Please wait ${left} s.`);
  show();
  countdown = setInterval(() => {
    left -= 1;
    if (left > 0) show();
    else showError("You can try again now.");
  }, 1000);
}

export function showRunning(isRunning) {
  if (!form) return;
  stopButton.hidden = !isRunning;
  sendButton.hidden = isRunning && !field.value.trim();
}

function changed() {
  sendButton.setAttribute("aria-disabled", String(!field.value.trim()));
  showRunning(!stopButton.hidden);
  if (!CSS.supports("field-sizing", "content")) grow();
  if (field.value) localStorage.setItem(draftKey, field.value);
  else localStorage.removeItem(draftKey);
  document.dispatchEvent(new CustomEvent("composing"));
}

// What was wrong with the text before is no longer true; a wait is.
function edited() {
  if (!countdown) showError("");
  changed();
}

function grow() {
  field.style.setProperty("height", "auto");
  field.style.setProperty("height", `${field.scrollHeight}px`);
}

function pressed(event) {
  if (event.key !== "Enter" || event.shiftKey || isTouch) return;
  if (event.isComposing || event.keyCode === 229) return; // an input method is choosing a word
  event.preventDefault();
  form.requestSubmit(sendButton);
}

export function start({ onSend, onStop }) {
  if (!form) return;
  if (!field.value) field.value = localStorage.getItem(draftKey) ?? "";
  field.addEventListener("input", edited);
  field.addEventListener("keydown", pressed);
  stopButton.addEventListener("click", () => {
    focus(); // the button is about to go
    onStop();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = event.submitter?.name === "text" ? event.submitter.value : field.value;
    if (!value.trim() || form.ariaBusy === "true") return;
    showError("");
    onSend(value);
  });
  field.enterKeyHint = isTouch ? "enter" : "send";
  changed();
  focus();
}

export const action = () => form.getAttribute("action");

export function setBusy(isBusy) {
  form.ariaBusy = String(isBusy);
}
