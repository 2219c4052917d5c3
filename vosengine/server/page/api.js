// Client of the server's HTTP API.

/** Error response of the server. */
export class Refused extends Error {
  /**
   * @param {number} status of HTTP
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The server could not be reached. */
export class Unreachable extends Error {}

export class Api {
  /** @param {string} token the server's, which makes sessions */
  constructor(token) {
    this.token = token;
  }

  /** @returns {Promise<object[]>} the caller's sessions; rejects where the token is wrong */
  sessions() {
    return this.#json("GET", "v1/sessions");
  }

  /** @returns {Promise<object>} the models the server offers */
  models() {
    return this.#json("GET", "v1/models");
  }

  /** @param {object} options policy, reply, size */
  create(options) {
    return this.#json("POST", "v1/sessions", options);
  }

  /** @param {string} id */
  session(id) {
    return this.#json("GET", `v1/sessions/${encodeURIComponent(id)}`);
  }

  /** @param {string} id */
  async close(id) {
    await this.#fetch("DELETE", `v1/sessions/${encodeURIComponent(id)}`);
  }

  /**
   * A mask from a box and clicks.
   * @param {Blob} image
   * @param {import("./labels.js").Box | null} box
   * @param {{x: number, y: number, positive: boolean}[]} points
   * @param {AbortSignal} signal
   * @returns {Promise<Blob>} a PNG, 255 where the object is
   */
  async prompt(image, box, points, signal) {
    const query = new URLSearchParams();
    if (box) query.set("box", [box.x, box.y, box.w, box.h].map(Math.round).join());
    for (const { x, y, positive } of points) {
      query.append("point", `${Math.floor(x)},${Math.floor(y)}${positive ? "" : ",-"}`);
    }
    const headers = { "Content-Type": image.type };
    const response = await this.#fetch("POST", `v1/prompt?${query}`, {
      body: image,
      headers,
      signal,
    });
    return response.blob();
  }

  async #json(method, path, body) {
    const options = body && {
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
    };
    return (await this.#fetch(method, path, options)).json();
  }

  async #fetch(method, path, { body, headers, signal } = {}) {
    let response;
    try {
      response = await fetch(path, {
        method,
        body,
        signal,
        headers: { ...headers, Authorization: `Bearer ${this.token}` },
        cache: "no-store",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable("The server does not answer.");
    }
    if (response.ok) return response;
    throw await refusal(response);
  }
}

async function refusal(response) {
  const text = await response.text();
  try {
    const { code, message } = JSON.parse(text).error;
    return new Refused(response.status, code, message);
  } catch {
    return new Refused(response.status, "http", `The server answered ${response.status}.`);
  }
}
