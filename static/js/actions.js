// The buttons on rows: answer again, continue, versions, edit, and what waits above the composer.
import * as composer from "./composer.js";
import { post } from "./http.js";
import { newId } from "./outbox.js";
import { sync } from "./transcript.js";

// Every such button belongs to one form, so that it also works without this script.
async function act(button) {
  const fields = { client_id: newId() };
  if (button.name) fields[button.name] = button.value;
  button.disabled = true;
  try {
    const { message = button.value } = await post(button.formAction, fields);
    await sync();
    focusRow(message, button.getAttribute("aria-label"));
  } catch (problem) {
    composer.showError(problem.message, problem.retryAfter);
  }
  button.disabled = false;
}

// The pressed button may be gone: the keyboard goes on from the same one of the new row, or
// from the row itself.
function focusRow(message, label) {
  if (document.activeElement?.closest(":enabled, a")) return;
  const row = document.getElementById(`message-${message}`);
  const same = label && row?.querySelector(`[aria-label="${label}"]:enabled`);
  if (!row) return composer.focus();
  if (!same) row.tabIndex = -1;
  (same || row).focus({ preventScroll: true });
}

document.getElementById("row-actions")?.addEventListener("submit", (event) => {
  if (!document.getElementById("transcript") || event.submitter?.closest(".sidebar, .toast")) return;
  event.preventDefault();
  act(event.submitter);
});

function openEdit(message) {
  const details = message.querySelector(".edit");
  details.open = true;
  const field = details.querySelector("textarea");
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

function closeEdit(message) {
  message.querySelector("[data-edit-form]").reset();
  message.querySelector(".edit").open = false;
  message.querySelector("[data-edit]").focus();
}

async function sendEdit(form) {
  const fields = Object.fromEntries(new FormData(form));
  if (!fields.text.trim() || form.ariaBusy === "true") return;
  form.ariaBusy = "true";
  try {
    const url = form.getAttribute("action");
    const { message } = await post(url, { ...fields, client_id: newId() });
    form.closest(".edit").open = false;
    await sync();
    focusRow(message);
  } catch (problem) {
    composer.showError(problem.message, problem.retryAfter);
  }
  form.ariaBusy = "false";
}

async function editPending(item) {
  const words = item.querySelector(".pending__text");
  composer.fill(words.textContent);
  composer.focus();
  await post(item.dataset.url, { _method: "delete" });
  await sync();
}

document.addEventListener("click", (event) => {
  const { target } = event;
  if (target.closest("[data-edit]")) openEdit(target.closest(".message"));
  if (target.closest("[data-cancel-edit]")) closeEdit(target.closest(".message"));
  if (target.closest("[data-edit-pending]")) editPending(target.closest(".pending"));
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(target)) menu.open = false;
  }
});

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-edit-form]")) return;
  event.preventDefault();
  sendEdit(event.target);
});

document.addEventListener("keydown", (event) => {
  const form = event.target.closest?.("[data-edit-form]");
  if (!form || event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  if (event.key === "Escape") closeEdit(form.closest(".message"));
});
