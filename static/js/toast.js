// Short notices at the foot of the page, with at most one thing to do.

const NEXT = "notice";

export function toast(text, { action = "", onAction = null, seconds = 6 } = {}) {
  const notice = document.createElement("div");
  notice.className = "toast";
  const words = document.createElement("span");
  words.textContent = text;
  notice.append(words);
  if (action) notice.append(actionButton(action, () => (notice.remove(), onAction())));
  document.getElementById("toasts").append(notice);
  setTimeout(() => notice.remove(), seconds * 1000);
}

function actionButton(label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button button--quiet";
  button.textContent = label;
  button.addEventListener("click", act);
  return button;
}

// Leaves this page, and says there why.
export function leaveFor(url, text) {
  sessionStorage.setItem(NEXT, text);
  location.assign(url);
}

const left = sessionStorage.getItem(NEXT);
sessionStorage.removeItem(NEXT);
if (left) toast(left);

for (const notice of document.querySelectorAll(".toast")) setTimeout(() => notice.remove(), 10_000);
