// One answer as it is written. Text is kept as the log has it; the page is painted once a frame,
// and only the last block of the text is parsed again.
import { Announcer } from "./announce.js";
import { closed, lastBlockStart } from "./blocks.js";
import { enhance } from "./code.js";
import { append } from "./markdown.js";
import * as scroll from "./scroll.js";
import { showStatus, wordsFor } from "./status.js";
import { sendWatch, unwatch, watch } from "./socket.js";

const streams = new Map(); // generation id → Stream

export const streamOf = (generation) => streams.get(generation);

export class Stream {
  constructor(article) {
    const { generation, seq, epoch, length, finish } = article.dataset;
    const body = article.querySelector(".message__body");
    const source = article.querySelector(".message__source").content.textContent;
    Object.assign(this, { article, body, generation, announcer: new Announcer() });
    Object.assign(this, { stable: 0, stableNodes: 0, frame: 0, isFrozen: false, isWhole: false });
    // Lengths are counted in code points, as the server counts them.
    const isHere = [...source].length === Number(length);
    this.begin(isHere ? source : "", Number(epoch), isHere ? Number(seq) : 0);
    streams.set(generation, this);
    if (finish && isHere) this.whole();
    watch(generation, () => ({ epoch: this.epoch, seq: this.seq }));
  }

  begin(text, epoch, seq) {
    Object.assign(this, { text, epoch, seq, length: [...text].length });
    this.announcer.skip(text);
    if (text) this.schedule();
  }

  // `finish`: this is the last of the text; the answer's final row follows.
  delta({ epoch, seq, offset, text, finish }) {
    if (epoch === this.epoch && seq <= this.seq) return;
    if (epoch !== this.epoch || offset !== this.length) return this.restart(epoch);
    this.seq = seq;
    this.length += [...text].length;
    this.text += text;
    if (finish && !this.isFrozen) this.whole();
    this.schedule();
  }

  // Nothing is left to stop; what is sent now is asked next. Who writes the end is nobody's matter.
  whole() {
    this.state({ status: "running" });
    this.isWhole = true;
    this.become("whole");
  }

  become(state) {
    this.article.dataset.state = state;
    document.dispatchEvent(new CustomEvent("transcript"));
  }

  // A hole, which should not be: ask again for everything of this epoch.
  restart(epoch) {
    if (this.isRestarting) return;
    this.isRestarting = true;
    setTimeout(() => (this.isRestarting = false), 1000);
    this.reset({ epoch, to: 0 });
    sendWatch(this.generation);
  }

  reset({ epoch, to }) {
    const text = [...this.text].slice(0, to).join("");
    Object.assign(this, { epoch, seq: 0, text, length: [...text].length });
    if (this.isWhole) this.become("running");
    Object.assign(this, { stable: 0, stableNodes: 0, isWhole: false });
    this.schedule();
  }

  state(frame) {
    if (this.isWhole) return;
    this.article.dataset.state = frame.status === "resuming" ? "queued" : frame.status;
    showStatus(this.article, frame);
    this.announcer.waits(wordsFor(frame) ?? "");
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = 0;
    if (this.isFrozen || !streams.has(this.generation)) return;
    if (!this.isWhole && this.article.dataset.state !== "running") this.state({ status: "running" });
    this.settleBlocks();
    append(this.body, closed(this.text.slice(this.stable)), this.stableNodes);
    if (!this.isWhole) this.drawCaret();
    this.announcer.hear(this.text);
    scroll.follow();
  }

  settleBlocks() {
    const start = lastBlockStart(this.text.slice(this.stable));
    if (!start) return;
    append(this.body, this.text.slice(this.stable, this.stable + start), this.stableNodes);
    const settled = [...this.body.childNodes].slice(this.stableNodes);
    settled.filter((node) => node.nodeType === Node.ELEMENT_NODE).forEach(enhance);
    this.stable += start;
    this.stableNodes = this.body.childNodes.length;
  }

  drawCaret() {
    let last = this.body.lastElementChild;
    while (last && /^(UL|OL|LI|BLOCKQUOTE|DIV|PRE|TABLE|TBODY|TR)$/.test(last.nodeName)) {
      if (!last.lastElementChild) break;
      last = last.lastElementChild;
    }
    const caret = document.createElement("span");
    caret.className = "message__caret";
    if (last) last.append(caret);
  }

  // Stop: what is on the screen at the click stays as it is until the answer has ended.
  freeze() {
    this.isFrozen = true;
    this.body.querySelector(".message__caret")?.remove();
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.announcer.waits("");
    this.announcer.hear(this.text, true);
    this.body.querySelector(".message__caret")?.remove();
    streams.delete(this.generation);
    unwatch(this.generation);
  }
}
