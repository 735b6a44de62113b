// Copying: messages as the Markdown they were written in.
import { toast } from "./toast.js";

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyByCommand(text); // Plain HTTP on a local network has no clipboard API.
  }
}

function copyByCommand(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function sourceOf(message) {
  return message.querySelector(".message__source").content.textContent;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy-message]");
  if (!button) return;
  await copyText(sourceOf(button.closest(".message")));
  const icon = button.querySelector(".icon");
  icon.className = "icon icon--tick";
  setTimeout(() => (icon.className = "icon icon--copy"), 1500);
});

export async function copyLast(selector, text) {
  const found = [...document.querySelectorAll(selector)].at(-1);
  if (!found) return;
  await copyText(text(found));
  toast("Copied");
}
