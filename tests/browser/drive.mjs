// Plays scenarios in one Chromium, with the server and the clips in the environment (harness.mjs).
// Reads the name of a scenario a line, and answers by a line of JSON: {"ok", "said"}, or before it
// {"ask"}, what is to be done with the server; any line says that it was done.

import { createInterface } from "node:readline";
import { format } from "node:util";
import { launch } from "./harness.mjs";
import { looks } from "./looks.mjs";
import { scenarios } from "./scenarios.mjs";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const answer = (content) => process.stdout.write(`${JSON.stringify(content)}\n`);

const actions = {
  async ask(what) {
    answer({ ask: what });
    await lines.next();
  },
};
const all = { ...scenarios, ...looks };

const browser = await launch();
for (let line = await lines.next(); !line.done; line = await lines.next()) {
  try {
    answer({ ok: true, said: (await all[line.value](browser, actions)) ?? "" });
  } catch (error) {
    for (const context of browser.contexts()) await context.close();
    answer({ ok: false, said: format(error) });
  }
}
await browser.close();
