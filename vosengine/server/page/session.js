// Tab storage: a reload resumes the same session.

const TOKEN = "vosengine.token";
const SESSION = "vosengine.session";

/**
 * @typedef {{id: string, token: string, model: string, needs_mask: boolean, takes_mask: boolean,
 *   window: number, options: object,
 *   source: {live: boolean, name: string, index: number, time: number} | null}} Remembered
 */

/** @returns {string | null} the token in the address, which is taken out of it, or the one kept */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    keepToken(given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(TOKEN);
}

/** @param {string} token */
export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** @returns {Remembered | null} */
export function remembered() {
  return JSON.parse(sessionStorage.getItem(SESSION));
}

/** @param {Remembered | null} session null forgets it */
export function remember(session) {
  if (session) sessionStorage.setItem(SESSION, JSON.stringify(session));
  else sessionStorage.removeItem(SESSION);
}
