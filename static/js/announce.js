// Tells a screen reader the answer by sentences, not by tokens.

const log = document.getElementById("announcer");

export class Announcer {
  #said = 0;

  // Says the whole sentences that were not said yet; all of the rest at the end.
  hear(text, isEnd = false) {
    const rest = text.slice(this.#said);
    const end = isEnd ? rest.length : lastSentenceEnd(rest);
    if (!log || end === 0) return;
    const line = document.createElement("p");
    line.textContent = rest.slice(0, end).trim();
    if (line.textContent) log.append(line);
    this.#said += end;
    while (log.childElementCount > 20) log.firstChild.remove();
  }

  skip(text) {
    this.#said = text.length;
  }
}

function lastSentenceEnd(text) {
  const ends = [...text.matchAll(/[.!?。！？](?=\s)|\n/g)];
  return ends.length ? ends.at(-1).index + 1 : 0;
}
