// Suggestions on a new chat: at most four, those that go with what is being typed.
import { text } from "./composer.js";

const list = document.getElementById("suggestions");

function filter() {
  const typed = text().trim().toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const card of list.children) {
    const words = card.textContent.toLowerCase();
    const fits = shown < 4 && typed.every((word) => words.includes(word));
    card.hidden = !fits;
    if (fits) shown += 1;
  }
}

if (list) document.addEventListener("composing", filter);
