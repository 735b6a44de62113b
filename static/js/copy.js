// Copying: messages as the Markdown they were written in.
import { toast } from "./toast.js";

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyByCommand(text); // Plain HTTP on a local network has no clipboard API.
  }
}

// For a moment, which no news of the page cuts short: patch.js leaves it alone.
export function tell(button, show, hide) {
  button.dataset.told = "";
  show();
  setTimeout(() => {
    delete button.dataset.told;
    hide();
  }, 1500);
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
  const mark = (name) => (icon.className = `icon icon--${name}`);
  tell(button, () => mark("tick"), () => mark("copy"));
});

export async function copyLast(selector, text) {
  const found = [...document.querySelectorAll(selector)].at(-1);
  if (!found) return;
  await copyText(text(found));
  toast("Copied");
}
