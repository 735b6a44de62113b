// Keyboard shortcuts, the list of them, and the switch that turns them off.
import { copyLast, sourceOf } from "./copy.js";
import { toggleSidebar } from "./sidebar.js";

const dialog = document.getElementById("shortcuts");
const isApple = /Mac|iP(hone|ad)/.test(navigator.platform);

const ACTIONS = {
  "mod+shift+o": () => location.assign("/"),
  "mod+b": toggleSidebar,
  "shift+escape": () => document.getElementById("composer-text")?.focus(),
  "mod+shift+c": () => copyLast(".message--assistant", sourceOf),
  "mod+shift+;": () => copyLast(".code code", (code) => code.textContent),
  "mod+/": () => (dialog.open ? dialog.close() : dialog.showModal()),
};

function nameOf(event) {
  const key = { ":": ";", "?": "/" }[event.key] ?? event.key.toLowerCase();
  const mod = (isApple ? event.metaKey : event.ctrlKey) ? "mod+" : "";
  return `${mod}${event.shiftKey && key !== "/" ? "shift+" : ""}${key}`;
}

// Without Ctrl or Cmd a key belongs to the field it is typed in.
function isTyping(event) {
  return !event.ctrlKey && !event.metaKey && event.key !== "Escape" &&
    event.target.closest?.("input, textarea, select, [contenteditable]");
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || isTyping(event)) return;
  if (localStorage.getItem("shortcuts") === "off") return;
  const action = ACTIONS[nameOf(event)];
  if (!action) return;
  event.preventDefault();
  action();
});

if (dialog) {
  const box = document.getElementById("shortcuts-on");
  box.checked = localStorage.getItem("shortcuts") !== "off";
  box.addEventListener("change", () => {
    localStorage.setItem("shortcuts", box.checked ? "on" : "off");
  });
  for (const key of dialog.querySelectorAll("[data-mod]")) if (isApple) key.textContent = "⌘";
  document.querySelector("[data-shortcuts]")?.addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
