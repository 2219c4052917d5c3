// Object swatches: the selected object, and those that are tracked.

import { colourOf } from "./colours.js";
import { element } from "./dom.js";

const DRAWABLE = [1, 2, 3, 4, 5, 6, 7, 8, 9];

export class Objects {
  selected = 1;
  #ids = [];

  /**
   * @param {{select: (id: number) => void, remove: (id: number) => void}} on
   */
  constructor(on) {
    this.on = on;
    this.box = element("swatches");
    this.removeButton = element("remove");
    this.removeButton.addEventListener("click", () => on.remove(this.selected));
    this.#build(DRAWABLE);
  }

  /** @param {number} id */
  select(id) {
    const input = this.#inputOf(id);
    if (!input) return;
    input.checked = true;
    this.selected = id;
    this.#update();
    this.on.select(id);
  }

  /** @param {number[]} ids that are followed */
  follow(ids) {
    this.#ids = ids;
    const shown = [...new Set([...DRAWABLE, ...ids])].sort((a, b) => a - b);
    if (shown.length !== this.box.children.length || !ids.every((id) => this.#inputOf(id))) {
      this.#build(shown);
    }
    this.#update();
  }

  #inputOf(id) {
    return this.box.querySelector(`[value="${id}"]`);
  }

  #build(ids) {
    if (!ids.includes(this.selected)) this.selected = 1;
    this.box.replaceChildren(...ids.map((id) => this.#swatch(id)));
  }

  #swatch(id) {
    const label = document.createElement("label");
    label.className = "swatch";
    label.style.setProperty("--colour", colourOf(id));
    const input = document.createElement("input");
    Object.assign(input, {
      type: "radio",
      name: "object",
      value: id,
      checked: id === this.selected,
    });
    input.addEventListener("change", () => this.select(id));
    label.append(input, String(id));
    return label;
  }

  #update() {
    for (const label of this.box.children) {
      const input = label.firstElementChild;
      const followed = this.#ids.includes(Number(input.value));
      label.classList.toggle("followed", followed);
      input.setAttribute("aria-label", `Object ${input.value}${followed ? ", followed" : ""}`);
    }
    this.removeButton.disabled = !this.#ids.includes(this.selected);
    this.removeButton.lastElementChild.textContent = this.selected;
  }
}
