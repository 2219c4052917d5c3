// One colour an object, the same everywhere on the page and in what it saves.

const NAMED = [
  "#ff5a5f",
  "#34d399",
  "#4ea8ff",
  "#ffc53d",
  "#b57bff",
  "#ff8a3d",
  "#2fd6e0",
  "#ff7ac8",
  "#c5e84d",
];

/**
 * @param {number} id 1 to 255; from 10 on the nine colours begin anew
 * @returns {string} #rrggbb
 */
export function colourOf(id) {
  return NAMED[(id - 1) % NAMED.length];
}

/**
 * @param {number} id
 * @returns {[number, number, number]} red, green, blue, 0 to 255; black for 0
 */
export function rgbOf(id) {
  if (!id) return [0, 0, 0];
  const value = parseInt(colourOf(id).slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}
