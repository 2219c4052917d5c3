// Keyboard shortcuts of the page.

const TOOLS = { b: "brush", e: "eraser", l: "lasso", r: "box", c: "click" };

/**
 * @param {{toggle: () => void, step: () => void, object: (id: number) => void,
 *   tool: (name: string) => void, resize: (factor: number) => void, commit: () => void,
 *   drop: () => void, undo: () => void, redo: () => void, help: () => void}} act
 * @param {() => boolean} letters whether keys of one letter or digit are wanted
 */
export function listen(act, letters) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || takesText(event.target)) return;
    const done =
      event.ctrlKey || event.metaKey ? withControl(event, act) : plain(event, act, letters);
    if (done) event.preventDefault();
  });
}

function withControl({ key, shiftKey }, act) {
  const letter = key.toLowerCase();
  if (letter === "z" && !shiftKey) act.undo();
  else if (letter === "y" || letter === "z") act.redo();
  else return false;
  return true;
}

function plain({ key, target, altKey }, act, letters) {
  const pressed = target.closest("button, [type=checkbox]"); // Enter and Space have a use there
  if (key === "Escape") act.drop();
  else if (key === "Enter" && !pressed) act.commit();
  else if (key === " " && !pressed) act.toggle();
  else if (!letters() || altKey) return false;
  else if (key === ".") act.step();
  else if (key === "?") act.help();
  else if (key === "[") act.resize(1 / 1.2);
  else if (key === "]") act.resize(1.2);
  else if (/^[1-9]$/.test(key)) act.object(Number(key));
  else if (TOOLS[key.toLowerCase()]) act.tool(TOOLS[key.toLowerCase()]);
  else return false;
  return true;
}

function takesText(target) {
  return target.matches("select, input:not([type=radio], [type=range], [type=checkbox])");
}
