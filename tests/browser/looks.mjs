// How the page looks, and what it costs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dabBall, given, openClip, openPage, picture } from "./harness.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** The rules of accessibility that a program can check: names, contrast, landmarks. */
async function assertAccessible(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run());
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target)}`);
  assert.deepEqual(found, []);
}

export const looks = {
  async looks(browser) {
    const { page, close } = await openPage(browser, { hasTouch: true, reducedMotion: "reduce" });
    const sizes = { wide: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };
    const all = async (name, accessible = "") => {
      for (const [size, viewport] of Object.entries(sizes)) {
        await page.setViewportSize(viewport);
        for (const colorScheme of ["light", "dark"]) {
          await page.emulateMedia({ colorScheme });
          await picture(page, `${name}-${size}-${colorScheme}`);
          if (size === accessible) await assertAccessible(page);
        }
        const [inner, wanted] = await page.evaluate(() => [
          innerWidth,
          document.documentElement.scrollWidth,
        ]);
        assert.ok(wanted <= inner, `${name}: ${wanted} pixels in a window of ${inner}`);
      }
      await page.setViewportSize(sizes.wide);
    };
    await all("empty", "wide");
    await openClip(page);
    await dabBall(page);
    await all("draft", "phone");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => vosengine.history.length > 3);
    await all("followed");
    await page.click("#help-open");
    await all("help", "wide");
    await page.keyboard.press("Escape");
    await page.setViewportSize(sizes.phone);
    await page.click("#more");
    await picture(page, "settings-phone-dark");
    await close();
  },

  /** For the README: the objects of a mask that is at hand are followed. */
  async pictures(browser) {
    const { page, close } = await openPage(browser);
    page.setDefaultTimeout(0); // nobody waits for it
    const png = readFileSync(process.env.PAGE_MASK).toString("base64");
    await page.setInputFiles("#file", given.clip);
    await page.waitForFunction(() => vosengine.stream.shown && vosengine.live.connection?.isOpen);
    await page.evaluate(async (text) => {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const bitmap = await createImageBitmap(new Blob([bytes]));
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      canvas.drawImage(bitmap, 0, 0);
      const { data } = canvas.getImageData(0, 0, bitmap.width, bitmap.height);
      const colours = new Map([[0, 0]]); // of the palette, black first; each is an object
      const { editor } = vosengine;
      editor.hold();
      editor.begin();
      for (let i = 0; i < data.length; i += 4) {
        const colour = (data[i] << 16) | (data[i + 1] << 8) | data[i + 2];
        if (!colours.has(colour)) colours.set(colour, colours.size);
        editor.draft.map.data[i / 4] = colours.get(colour);
      }
      editor.end();
      await editor.commit();
      vosengine.stream.play();
    }, png);
    await page.waitForFunction(() => vosengine.history.length >= 10);
    await picture(page, "page-light");
    await page.keyboard.press(" ");
    await page.emulateMedia({ colorScheme: "dark" });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.keyboard.press("l");
    await page.waitForTimeout(500);
    await picture(page, "page-dark");
    await close();
  },

  /** Time and memory that the page itself takes. */
  async cost(browser) {
    const frames = Number(process.env.PAGE_FRAMES ?? 40);
    const { page, close } = await openPage(browser);
    await page.selectOption("#detail", "128");
    await page.click("#empty-camera");
    await page.waitForFunction(() => vosengine.stream.shown?.frame.index > 2);
    await page.keyboard.press(" ");
    await dabBall(page);
    await page.keyboard.press("Enter");
    const devtools = await page.context().newCDPSession(page);
    const heap = async (count) => {
      await page.waitForFunction((n) => vosengine.stats.frames >= n, count, { timeout: 0 });
      await devtools.send("HeapProfiler.collectGarbage");
      return (await devtools.send("Runtime.getHeapUsage")).usedSize / 2 ** 20;
    };
    const half = await heap(frames / 2);
    const full = await heap(frames);
    const { overheads, rate, latency, size } = await page.evaluate(() => {
      const { overheads, rate, latency } = vosengine.stats;
      const size = `${image.width}x${image.height}`;
      return { overheads: overheads.sort((a, b) => a - b), rate, latency, size };
    });
    const at = (share) => overheads[Math.floor(overheads.length * share)].toFixed(1);
    const said =
      `page overhead of a ${size} frame: least ${at(0)} ms, p50 ${at(0.5)}, p95 ${at(0.95)}; ` +
      `latency p50 ${latency.toFixed(0)} ms, ${rate.toFixed(1)} frames/s; ` +
      `heap ${half.toFixed(2)} MiB after ${frames / 2} frames, ${full.toFixed(2)} after ${frames}`;
    assert.ok(full - half < 1, `the heap grows: ${said}`);
    await close();
    return said;
  },
};
