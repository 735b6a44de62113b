// Tells a screen reader the answer by sentences, not by tokens, and what it waits for.

const log = document.getElementById("announcer");
const MOMENT = 1500;
const BETWEEN = 10_000;

export class Announcer {
  #said = 0;
  #waitsFor = "";
  #told = "";
  #timer = 0;

  // In words, or nothing: not what passes in a moment, and not each step of a long queue.
  waits(words) {
    this.#waitsFor = words;
    if (!words) this.#told = ""; // should it wait again, that is news
    this.#timer ||= words && setTimeout(() => this.#tell(), this.#told ? BETWEEN : MOMENT);
  }

  #tell() {
    this.#timer = 0;
    if (!this.#waitsFor || this.#waitsFor === this.#told) return;
    this.#told = this.#waitsFor;
    say(this.#told);
  }

  // Says the whole sentences that were not said yet; all of the rest at the end.
  hear(text, isEnd = false) {
    const rest = text.slice(this.#said);
    const end = isEnd ? rest.length : lastSentenceEnd(rest);
    if (end === 0) return;
    say(rest.slice(0, end).trim());
    this.#said += end;
  }

  skip(text) {
    this.#said = text.length;
  }
}

function say(words) {
  if (!log || !words) return;
  const line = document.createElement("p");
  line.textContent = words;
  log.append(line);
  while (log.childElementCount > 20) log.firstChild.remove();
}

function lastSentenceEnd(text) {
  const ends = [...text.matchAll(/[.!?。！？](?=\s)|\n/g)];
  return ends.length ? ends.at(-1).index + 1 : 0;
}
