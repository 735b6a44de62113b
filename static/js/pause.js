// How long to wait before something is tried again, so that pages that failed together do not
// come back together: evenly spread, up to a ceiling that doubles with each failure.

const LEAST = 100; // milliseconds
const FIRST = 250;
const MOST = 30_000;

export function pauseAfter(failures) {
  const ceiling = Math.min(MOST, FIRST * 2 ** Math.min(failures, 8));
  return LEAST + Math.random() * (ceiling - LEAST);
}
