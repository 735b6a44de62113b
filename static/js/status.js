// What an unfinished answer is waiting for, in words. The template _message_status.html says the
// same on the first paint.

const WORDS = {
  queued: ({ away, position, wait }) => {
    if (away) return "Waiting for the model’s server";
    return position ? `Position ${position} in the queue${wait ? `, about ${wait} s` : ""}` : "Waiting";
  },
  loading: ({ percent }) => `Loading the model${percent ? `, ${percent} %` : ""}`,
  running: () => "",
  resuming: () => "Going on where it stopped…",
};

export const wordsFor = (frame) => WORDS[frame.status]?.(frame);

export function showStatus(article, frame) {
  const status = article.querySelector(".message__status");
  const words = wordsFor(frame);
  if (!status || words === undefined) return;
  if (status.dataset.status === frame.status && renew(status, words, frame)) return;
  status.dataset.status = frame.status;
  const label = element("span", "message__label");
  label.textContent = words;
  if (frame.status === "loading") status.replaceChildren(label, bar(frame.percent ?? 0));
  else status.replaceChildren(element("span", "message__dot"), label);
}

// In place: made anew each second, the dot would begin its breath anew each second.
function renew(status, words, { percent }) {
  const label = status.querySelector(".message__label");
  if (!label) return false;
  if (label.textContent !== words) label.textContent = words;
  const bar = status.querySelector("progress");
  if (bar) bar.value = percent ?? 0;
  return true;
}

function element(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}

function bar(percent) {
  const progress = element("progress", "message__progress");
  Object.assign(progress, { max: 100, value: percent });
  progress.setAttribute("aria-label", "Loading the model");
  return progress;
}
