// Makes live nodes equal to new ones, and leaves alone what is equal already:
// selections, open menus and scroll positions survive.

const KEPT = new Set(["open", "tabindex"]);

export function patchChildren(live, next, from = 0) {
  const wanted = [...next.childNodes];
  wanted.forEach((node, index) => {
    const have = live.childNodes[from + index];
    if (!have) live.append(document.adoptNode(node));
    else patchNode(have, node);
  });
  while (live.childNodes.length > from + wanted.length) live.lastChild.remove();
}

export function patchNode(have, node) {
  if (have.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) {
    if (have.data !== node.data) have.data = node.data;
  } else if (have.nodeName !== node.nodeName || have.nodeType !== Node.ELEMENT_NODE) {
    have.replaceWith(document.adoptNode(node));
  } else if (have.nodeName === "TEMPLATE") {
    have.content.textContent = node.content.textContent;
  } else if (!have.isEqualNode(node) && !("told" in have.dataset)) {
    patchAttributes(have, node);
    patchChildren(have, node);
  }
}

function patchAttributes(have, node) {
  for (const { name } of [...have.attributes]) {
    if (!node.hasAttribute(name) && !KEPT.has(name)) have.removeAttribute(name);
  }
  for (const { name, value } of node.attributes) {
    if (have.getAttribute(name) !== value) have.setAttribute(name, value);
  }
}
