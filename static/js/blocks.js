// Streaming Markdown: which part can still change, and how to show it before it is whole.
import { topLevelBlocks } from "./markdown.js";

// Where the last block begins, as an index into the text; what is before it will not change.
export function lastBlockStart(text) {
  const blocks = topLevelBlocks(text);
  if (blocks.length < 2) return 0;
  return lineStart(text, blocks.at(-1));
}

function lineStart(text, line) {
  const ends = /\r\n?|\n/g;
  for (let count = 0; count < line; count += 1) if (!ends.exec(text)) return text.length;
  return ends.lastIndex;
}

// Closes what the writer has opened but not yet closed, so that no mark flashes by.
export function closed(text) {
  if (hasOpenFence(text)) return text.replace(/\n[ \t]*(`{1,2}|~{1,2})$/, "\n");
  return closeMarks(closeLink(withoutStub(text)));
}

function hasOpenFence(text) {
  let open = null;
  for (const line of text.split("\n")) {
    const mark = /^[\s>]*(?:[-*+]\s+|\d+[.)]\s+)?(`{3,}|~{3,})(.*)$/.exec(line);
    if (!mark) continue;
    if (!open) open = mark[1];
    else if (mark[1][0] === open[0] && mark[1].length >= open.length && !mark[2].trim()) open = null;
  }
  return open !== null;
}

// A last line of nothing but marks may become anything: a heading, a rule, a list, a fence.
function withoutStub(text) {
  return text.replace(/(^|\n)[ \t>]*(?:[-=*_+`~|:]{1,3}|#{1,6}|\d+[.)]?)[ \t]*$/, "$1");
}

function closeLink(text) {
  return text
    .replace(/!?\[([^\][\n]*)\]\([^()\s]*$/, "$1")
    .replace(/!?\[([^\][\n]*)$/, "$1");
}

function closeMarks(text) {
  const paragraph = text.slice(text.lastIndexOf("\n\n") + 1);
  const ticks = (paragraph.match(/`/g) ?? []).length;
  if (ticks % 2) return text.endsWith("`") ? text.slice(0, -1) : `${text}\``;
  const words = paragraph.replace(/`[^`]*`/g, "").replace(/\\./g, "").replace(/^\s*\*\s/gm, "");
  return ["**", "*", "~~", "__"].reduce((whole, mark) => closeMark(whole, words, mark), text);
}

function closeMark(text, words, mark) {
  const bare = mark === "*" ? words.replaceAll("**", "") : words;
  if (bare.split(mark).length % 2 === 1) return text;
  const trimmed = text.trimEnd();
  if (mark === "*" && !/\*\S/.test(bare)) return text;
  return trimmed.endsWith(mark) ? trimmed.slice(0, -mark.length) : trimmed + mark;
}
