// Markdown to HTML in the browser: the twin of chats/markdown.py, byte for byte.
// Its output is the only HTML this site ever makes out of a model's words; raw HTML is off.
import MarkdownIt from "markdown-it";
import { patchChildren } from "./patch.js";

const MAX_CHARACTERS = 100_000;
const MAX_NESTING = 40;
const MAX_CELLS = 20_000;
const MAX_ADDRESSES = 200_000;
const MAX_BRACKETS = 5000;
const BOMB = /(?:[\[\]()!*_~`<>&\\][ ]?){400}|(?:>[ \t]*){13}/;
const ALLOWED_LINK = /^(?:https?:\/\/[^/\\?#@]+(?:[/?#]|$)|mailto:[^?#])/i;
const HOST = /^https?:\/\/([^/?#:[]+|\[[^/?#]*\])/i;
const LANGUAGE = /^[ \t]*([A-Za-z0-9_+#.-]{1,30})(?![^ \t{:,])/;
const INVISIBLE = /[\x01-\x08\v\f\x0e-\x1f\x7f-\x9f\ufeff]/g;
const EDGES = /^[\s\ufeff]+|[\s\ufeff]+$/g;
const PATH = String.raw`[\p{L}\p{N}_\-./?#%&=+:;,@!~*'$]`;
const WEB_ADDRESS = new RegExp(
  String.raw`//(?![^\s/?#\\]*@)(?:[\p{L}\p{N}_\-]+(?:\.[\p{L}\p{N}_\-]+)*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?![\p{L}\p{N}_])` +
    String.raw`(?:[/?#](?:${PATH}|\((?:${PATH}|\(${PATH}*\))*\)|\[${PATH}*\]){0,2000})?`,
  "yu",
);
const ALIGNMENT = {
  "text-align:left": "is-left",
  "text-align:center": "is-center",
  "text-align:right": "is-right",
};

export function render(text) {
  const clean = wellFormed(text);
  return isTooMuch(clean) ? plain(clean) : (rendered(clean) ?? plain(clean));
}

// Renders a part of an answer at the end of `body`, in place of what is after its first nodes.
// This is the one place where text becomes nodes by way of HTML.
export function append(body, text, after) {
  const holder = document.createElement("template");
  holder.innerHTML = render(text);
  patchChildren(body, holder.content, after);
}

// The first lines of the blocks at the top level.
export function topLevelBlocks(text) {
  const tokens = [];
  if (!isTooMuch(text)) markdown.block.parse(text.replace(/\r\n?/g, "\n"), markdown, {}, tokens);
  return tokens.filter((token) => token.level === 0 && token.nesting >= 0).map((token) => token.map[0]);
}

function isTooMuch(text) {
  const lines = text.split("\n");
  const bars = (line) => line.split("|").length - 1;
  const cells = lines.reduce((most, line) => Math.max(most, bars(line)), 0) * lines.length;
  const brackets = text.split("[").length - 1;
  const isLarge = [...text].length > MAX_CHARACTERS || cells > MAX_CELLS || brackets > MAX_BRACKETS;
  return isLarge || BOMB.test(text);
}

function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "\ufffd").replace(INVISIBLE, "");
}

function rendered(text) {
  const tokens = markdown.parse(text, {});
  if (tokens.some((token) => token.level >= MAX_NESTING - 2) || repeatsTooMuch(tokens)) return null;
  return markdown.renderer.render(tokens, markdown.options, {});
}

// A reference of a few characters repeats its whole address each time.
function repeatsTooMuch(tokens) {
  const spans = tokens.flatMap((token) => token.children ?? []);
  return spans.reduce((sum, span) => sum + (span.attrGet("href") ?? "").length, 0) > MAX_ADDRESSES;
}

function plain(text) {
  const lines = text.replace(/\r\n?/g, "\n").replaceAll("\0", "\ufffd");
  return `<p class="plain">${escape(lines)}</p>\n`;
}

// As an HTML serialiser escapes, so that the server's sanitiser leaves the bytes alone.
function escape(text) {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll("\u00a0", "&nbsp;");
}

function escapeAttribute(text) {
  return escape(text).replaceAll('"', "&quot;");
}

// The two parsers do not agree on which rare spaces to trim; so both trim them all.
function trimBlocks(state) {
  for (const token of state.tokens) {
    if (token.type === "inline") token.content = token.content.replace(EDGES, "");
  }
}

// Our own idea of where an address in running text ends, the same on both sides.
function webAddressLength(text, position) {
  WEB_ADDRESS.lastIndex = position;
  return WEB_ADDRESS.exec(text)?.[0].replace(/[.,:;!?'*~_]+$/, "").length ?? 0;
}

function tidyLinks(state) {
  const link = (type, nesting) => new state.Token(type, "a", nesting);
  for (const block of state.tokens) {
    if (block.type !== "inline" || !block.children) continue;
    block.children = withHosts(withoutImages(block.children, state.Token, link));
  }
}

function withoutImages(children, Token, link) {
  let inside = false;
  return children.flatMap((token) => {
    if (token.type === "link_open" || token.type === "link_close") {
      inside = token.type === "link_open";
    }
    if (token.type !== "image") return [token];
    const label = new Token("text", "", 0);
    label.content = textOf(token.children ?? []) || "image";
    if (inside) return [label];
    const open = link("link_open", 1);
    open.attrs = [["href", token.attrGet("src") ?? ""]];
    return [open, label, link("link_close", -1)];
  });
}

function withHosts(children) {
  let href = "";
  let text = "";
  for (const token of children) {
    if (token.type === "link_open") {
      href = token.attrGet("href") ?? "";
      text = "";
      token.attrs = [
        ["class", "link"],
        ["href", href],
        ["rel", "noopener noreferrer nofollow"],
        ["target", "_blank"],
      ];
    } else if (token.type === "link_close") {
      const host = HOST.exec(href)?.[1];
      token.meta = { host: host && host !== hostShown(text) ? host : "" };
    } else {
      text += token.content;
    }
  }
  return children;
}

// The host a link's own words name, if they are a web address and nothing else.
function hostShown(text) {
  return text.replace(EDGES, "").replace(/^https?:\/\//i, "").split(/[/?#]/)[0];
}

function textOf(children) {
  return children
    .filter((token) => token.nesting === 0)
    .map((token) => (token.type === "image" ? textOf(token.children ?? []) : token.content || " "))
    .join("");
}

function fence(tokens, index) {
  const found = LANGUAGE.exec(markdown.utils.unescapeAll(tokens[index].info));
  const language = found ? found[1].toLowerCase() : "";
  const attribute = language ? ` class="language-${language}"` : "";
  return (
    `<div class="code"><div class="code__head"><span class="code__language">${language}` +
    `</span></div><pre><code${attribute}>${escape(tokens[index].content)}</code></pre></div>\n`
  );
}

function cell(tokens, index) {
  const alignment = ALIGNMENT[tokens[index].attrGet("style")];
  return alignment ? `<${tokens[index].tag} class="${alignment}">` : `<${tokens[index].tag}>`;
}

const markdown = new MarkdownIt("default", {
  html: false,
  linkify: true,
  breaks: true,
  maxNesting: MAX_NESTING,
});
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
for (const schema of ["//", "ftp:", "mailto:"]) markdown.linkify.add(schema, null);
for (const schema of ["http:", "https:"]) {
  markdown.linkify.add(schema, { validate: webAddressLength });
}
markdown.validateLink = (url) => ALLOWED_LINK.test(url) && URL.canParse(url);
markdown.core.ruler.after("block", "trim_blocks", trimBlocks);
markdown.core.ruler.push("tidy_links", tidyLinks);
markdown.renderer.renderAttrs = (token) =>
  (token.attrs ?? []).map(([name, value]) => ` ${name}="${escapeAttribute(String(value))}"`).join("");
Object.assign(markdown.renderer.rules, {
  fence,
  code_block: fence,
  code_inline: (tokens, index) => `<code>${escape(tokens[index].content)}</code>`,
  text: (tokens, index) => escape(tokens[index].content),
  table_open: () => '<div class="table"><table>\n',
  table_close: () => "</table></div>\n",
  th_open: cell,
  td_open: cell,
  link_close: (tokens, index) => {
    const host = tokens[index].meta.host;
    return host ? `</a><span class="link__host"> (${escape(host)})</span>` : "</a>";
  },
});
