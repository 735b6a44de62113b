// Renders a JSON list of Markdown texts with the browser's module; used by test_markdown_parity.py.
import { readFileSync } from "node:fs";
import { render } from "../../static/js/markdown.js";

const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map(render)));
