// Code boxes: a copy button, and colours once the block is whole.
import { copyText, tell } from "./copy.js";

// A name of the import map; written apart because the static files storage takes every quoted
// name inside import() for a path.
const PACKAGE = "highlight.js";

let highlighter = null;
let loading = null;

function load() {
  loading ??= import(PACKAGE).then((module) => {
    highlighter = module.default;
  });
  return loading;
}

export function enhance(root) {
  const boxes = root.matches?.(".code") ? [root] : [...root.querySelectorAll(".code")];
  for (const box of boxes) {
    if (!box.querySelector(".code__copy")) addCopyButton(box);
    highlight(box.querySelector('pre > code[class^="language-"]'));
  }
}

function addCopyButton(box) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "code__copy";
  button.append(icon("copy"), "Copy");
  box.firstElementChild.append(button);
}

function icon(name) {
  const element = document.createElement("span");
  element.className = `icon icon--${name}`;
  element.setAttribute("aria-hidden", "true");
  return element;
}

// The highlighter escapes what it is given; its output goes into a detached parser, and only
// its spans come out.
function highlight(code) {
  if (!code || code.dataset.coloured) return;
  if (!highlighter) return void load().then(() => highlight(code));
  const language = code.className.slice("language-".length);
  if (!highlighter.getLanguage(language) || code.textContent.length > 50_000) return;
  const { value } = highlighter.highlight(code.textContent, { language, ignoreIllegals: true });
  const coloured = new DOMParser().parseFromString(`<pre>\n${value}</pre>`, "text/html");
  code.replaceChildren(...coloured.body.firstChild.childNodes);
  code.dataset.coloured = "yes";
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".code__copy");
  if (!button) return;
  await copyText(button.closest(".code").querySelector("code").textContent);
  const say = (name, word) => button.replaceChildren(icon(name), word);
  tell(button, () => say("tick", "Copied"), () => say("copy", "Copy"));
});
