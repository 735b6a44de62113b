// The switch: as the system, light, dark.

const ORDER = ["system", "light", "dark"];
const ICONS = { system: "theme", light: "sun", dark: "moon" };
const LABELS = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
const root = document.documentElement;
const button = document.querySelector("[data-theme-switch]");

function show() {
  const theme = root.dataset.theme ?? "system";
  button.firstElementChild.className = `icon icon--${ICONS[theme]}`;
  button.setAttribute("aria-label", LABELS[theme]);
  button.title = LABELS[theme];
}

function turn() {
  const theme = ORDER[(ORDER.indexOf(root.dataset.theme ?? "system") + 1) % ORDER.length];
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  show();
}

if (button) {
  show();
  button.addEventListener("click", turn);
}
