// The list of chats: a drawer on a phone, rename in place, delete with undo.
import { fragment, post } from "./http.js";
import { patchChildren } from "./patch.js";
import { toast } from "./toast.js";
import { main, showTitle } from "./transcript.js";

const root = document.documentElement;
const list = document.getElementById("sidebar-list");
const isNarrow = matchMedia("(max-width: 47.99rem)");
let isStale = false;
let asked = 0;
let shown = 0; // which of those asked for

export function toggleSidebar() {
  if (!list) return;
  if (isNarrow.matches) return toggleDrawer(root.dataset.drawer !== "open");
  const isClosed = root.dataset.sidebar === "closed";
  if (isClosed) delete root.dataset.sidebar;
  else root.dataset.sidebar = "closed";
  localStorage.setItem("sidebar", isClosed ? "open" : "closed");
}

function toggleDrawer(isOpen) {
  if (isOpen) root.dataset.drawer = "open";
  else delete root.dataset.drawer;
  document.querySelector(".page").inert = isOpen;
  const target = isOpen ? ".sidebar__head [data-toggle-sidebar]" : ".topbar [data-toggle-sidebar]";
  document.querySelector(target)?.focus();
}

export function closeDrawer() {
  if (root.dataset.drawer !== "open") return false;
  toggleDrawer(false);
  return true;
}

// A list in which a menu is open or a title is written stays as it is until that is done.
export async function refresh() {
  if (!list) return;
  isStale = true;
  if (isInUse()) return;
  const mine = ++asked;
  const fresh = await fragment(list.dataset.url);
  // On a busy server an answer may be overtaken by the one to a later request, which is newer.
  if (isInUse() || mine < shown) return;
  shown = mine;
  isStale = false;
  patchChildren(list, fresh);
  markCurrent();
}

const isInUse = () => Boolean(list.querySelector(".menu[open], .sidebar__rename"));

const catchUp = () => void (isStale && refresh().catch(() => {}));

function markCurrent() {
  for (const item of list.querySelectorAll(".sidebar__chat")) {
    const link = item.querySelector(".sidebar__link");
    if (item.dataset.chat === main?.dataset.chat) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function rename(item) {
  const link = item.querySelector(".sidebar__link");
  const field = document.createElement("input");
  field.className = "sidebar__rename";
  field.maxLength = 120;
  field.value = link.querySelector(".sidebar__title").textContent;
  field.setAttribute("aria-label", "Title");
  item.querySelector(".menu").open = false;
  link.replaceWith(field);
  field.select();
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) field.blur();
    if (event.key === "Escape") field.value = "";
    if (event.key === "Escape") field.blur();
    event.stopPropagation();
  });
  field.addEventListener("blur", () => saveTitle(item, field, link), { once: true });
}

async function saveTitle(item, field, link) {
  const title = field.value.trim();
  const old = link.querySelector(".sidebar__title");
  field.replaceWith(link);
  if (!title || title === old.textContent) return catchUp();
  const before = old.textContent;
  old.textContent = title;
  try {
    await post(`${link.pathname}title/`, { title });
    if (item.dataset.chat === main?.dataset.chat) showTitle(title);
  } catch (problem) {
    old.textContent = before;
    toast(problem.message);
  }
  catchUp();
}

async function remove(item, url) {
  const isCurrent = item.dataset.chat === main?.dataset.chat;
  const title = item.querySelector(".sidebar__title").textContent;
  const chat = item.querySelector(".sidebar__link").pathname;
  const version = main?.dataset.version;
  if (isCurrent) main.dataset.version = "Infinity"; // nothing more to learn about this chat
  try {
    await post(url);
  } catch (problem) {
    if (isCurrent) main.dataset.version = version;
    return toast(problem.message);
  }
  if (isCurrent) {
    sessionStorage.setItem("deleted", JSON.stringify({ url, title, back: chat }));
    return location.assign("/");
  }
  item.remove();
  catchUp();
  offerUndo({ url, title }, `“${title}” is deleted.`);
}

// `back` is the chat that was open when it was deleted.
function offerUndo({ url, title, back }, words) {
  const onAction = async () => {
    try {
      await post(url, { undo: "1" });
      if (back) return location.assign(back);
      await refresh();
    } catch (problem) {
      offerUndo({ url, title, back }, `“${title}” is still deleted. ${problem.message}`);
    }
  };
  toast(words, { action: "Undo", onAction, seconds: 10 });
}

async function loadMore(link) {
  const url = new URL(link.href);
  url.searchParams.set("fragment", "1");
  const more = await fragment(url);
  link.replaceWith(...more.childNodes);
  markCurrent();
}

export function start() {
  if (!list) return;
  document.addEventListener("click", (event) => {
    const item = event.target.closest(".sidebar__chat");
    const remover = event.target.closest(".sidebar [data-delete]");
    const more = event.target.closest(".sidebar__more");
    const isToggle = event.target.closest("[data-toggle-sidebar]");
    if (isToggle || remover || more) event.preventDefault();
    if (isToggle) toggleSidebar();
    if (remover) remove(item, remover.formAction);
    if (more) loadMore(more);
    if (event.target.closest("[data-rename]")) rename(item);
  });
  list.addEventListener("toggle", catchUp, { capture: true });
  const deleted = JSON.parse(sessionStorage.getItem("deleted"));
  sessionStorage.removeItem("deleted");
  if (deleted) offerUndo(deleted, `“${deleted.title}” is deleted.`);
}
