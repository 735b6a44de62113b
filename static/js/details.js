// How an answer was made, shown over the chat; without this script the link leads to a page of it.
import { enhance } from "./code.js";
import { fragment } from "./http.js";

const dialog = document.getElementById("details");
const part = dialog?.querySelector('[data-part="details"]');

async function open(link) {
  try {
    part.replaceChildren(await fragment(`${link.href}?fragment=1`));
  } catch {
    return void location.assign(link.href); // says what is wrong
  }
  enhance(part);
  if (!dialog.open) dialog.showModal();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-details]");
  if (!link || !dialog || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link);
});

dialog?.addEventListener("click", (event) => event.target === dialog && dialog.close());
// What is out of sight is not “the last code block” of the chat.
dialog?.addEventListener("close", () => part.replaceChildren());
document.querySelectorAll("[data-details-page]").forEach(enhance);
