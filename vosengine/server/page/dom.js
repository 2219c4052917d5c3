// Small helpers for the page's elements.

/**
 * @param {string} id
 * @returns {any} the element, which the page has
 */
export function element(id) {
  return document.getElementById(id);
}

let cleared = 0;

/**
 * Says something to screen readers.
 * @param {string} text
 */
export function announce(text) {
  const live = element("live");
  live.textContent = ""; // the same text twice is spoken twice
  clearTimeout(cleared);
  cleared = setTimeout(() => (live.textContent = text), 50);
}

let expiry = 0;

/**
 * A notice above the picture; null takes it away.
 * @param {string | null} text
 * @param {{waiting?: boolean, seconds?: number, act?: {label: string, run: () => void}}} [options]
 *   `seconds` after which it goes by itself
 */
export function notice(text, { waiting = false, seconds = 0, act } = {}) {
  clearTimeout(expiry);
  const box = element("notice");
  box.hidden = text === null;
  box.classList.toggle("waiting", waiting);
  element("notice-text").textContent = text ?? "";
  const button = element("notice-act");
  button.hidden = !act;
  button.textContent = act?.label ?? "";
  button.onclick = act?.run ?? null;
  if (seconds) expiry = setTimeout(() => notice(null), seconds * 1000);
}
