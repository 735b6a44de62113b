// The box one writes in: its height, its keys, its draft.

const form = document.getElementById("composer");
const field = document.getElementById("composer-text");
const sendButton = form?.querySelector(".composer__send");
const stopButton = form?.querySelector("[data-stop]");
const error = document.getElementById("composer-error");
const isTouch = matchMedia("(pointer: coarse) and (hover: none)").matches;
// By person: the next one at this browser must not find what this one was writing.
const mine = `draft:${document.body.dataset.user ?? ""}:`;
const draftKey = mine + form?.dataset.draft;
for (const key of Object.keys(localStorage)) {
  if (key.startsWith("draft:") && !key.startsWith(mine)) localStorage.removeItem(key);
}
let countdown = null;

export const text = () => field.value;

export function fill(value) {
  field.value = value;
  changed();
}

export function focus() {
  if (field && !isTouch) field.focus({ preventScroll: true });
}

export function showError(message, retryAfter = null) {
  clearInterval(countdown);
  error.textContent = message;
  if (!retryAfter) return;
  let left = retryAfter;
  const show = () => (error.textContent = left > 0 ? `Too many messages. Please wait ${left} s.` : "");
  show();
  countdown = setInterval(() => (left -= 1, show(), left <= 0 && clearInterval(countdown)), 1000);
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
  field.addEventListener("input", changed);
  field.addEventListener("keydown", pressed);
  stopButton.addEventListener("click", onStop);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = event.submitter?.name === "text" ? event.submitter.value : field.value;
    if (!value.trim() || form.ariaBusy === "true") return;
    showError("");
    onSend(value);
  });
  if (isTouch) field.enterKeyHint = "enter";
  changed();
  focus();
}

export const action = () => form.getAttribute("action");

export function setBusy(isBusy) {
  form.ariaBusy = String(isBusy);
}
