// Runs before the first paint, so that neither the theme nor the sidebar flickers.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    if (localStorage.getItem("sidebar") === "closed") root.dataset.sidebar = "closed";
  } catch {
    // Storage may be forbidden; the system's theme is then the theme.
  }
})();
