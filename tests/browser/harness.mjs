// Chromium, opened on the page and watched: what the scenarios share.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--use-fake-ui-for-media-stream",
  "--use-fake-device-for-media-stream",
];

/** of the ball in the clips, in pixels */
export const RADIUS = 26;

/** Of the server, the clip and the camera: from the environment. */
export const given = {
  url: process.env.PAGE_URL,
  token: process.env.PAGE_TOKEN,
  clip: process.env.PAGE_CLIP,
  webm: process.env.PAGE_WEBM,
  camera: process.env.PAGE_CAMERA,
  out: process.env.PAGE_OUT ?? "out/browser",
};

/** A Chromium with an empty profile, whose camera shows a clip. */
export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      ...FLAGS,
      ...(given.camera ? [`--use-file-for-fake-video-capture=${given.camera}`] : []),
    ],
  });
}

/**
 * The page in a profile of its own. What goes wrong in it (console, requests to elsewhere, CSP)
 * fails `close`; `expected` are parts of messages that may come.
 */
export async function openPage(
  browser,
  { hash = `#token=${given.token}`, expected = [], ...options } = {},
) {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 800 },
    permissions: ["camera"],
    ...options,
  });
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  const wrong = [];
  const note = (text) => expected.some((part) => text.includes(part)) || wrong.push(text);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) note(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => note(`uncaught: ${error.stack}`));
  page.on("request", (request) => {
    const { protocol, host } = new URL(request.url());
    if (protocol !== "blob:" && host !== new URL(given.url).host) note(`asks ${request.url()}`);
  });
  await page.addInitScript(() => {
    const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    globalThis.canvasPixels = () => {
      Object.assign(copy.canvas, { width: image.width, height: image.height });
      copy.drawImage(image, 0, 0);
      return copy.getImageData(0, 0, image.width, image.height);
    };
    addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
      console.error(`CSP ${violatedDirective} ${blockedURI}`);
    });
  });
  await page.goto(given.url + hash);
  const close = async () => {
    await context.close();
    assert.deepEqual(wrong, []);
  };
  return { page, context, close };
}

/** A picture of the page, to look at. */
export async function picture(page, name) {
  mkdirSync(given.out, { recursive: true });
  await page.screenshot({ path: join(given.out, `${name}.png`) });
}

/** Opens a clip, with the network at its quickest, and waits for its first frame. */
export async function openClip(page, clip = given.clip) {
  await page.selectOption("#detail", "128");
  await page.setInputFiles("#file", clip);
  await page.waitForFunction(() => vosengine.stream.shown && vosengine.live.connection?.isOpen);
}

/** A stroke through points of the frame. */
export async function stroke(page, points) {
  const box = await page.locator("#image").boundingBox();
  const size = await page.evaluate(() => [image.width, image.height]);
  const at = ([x, y]) => [box.x + (x / size[0]) * box.width, box.y + (y / size[1]) * box.height];
  await page.mouse.move(...at(points[0]));
  await page.mouse.down();
  for (const point of points.slice(1)) await page.mouse.move(...at(point), { steps: 4 });
  await page.mouse.up();
}

/**
 * Where the ball is on the canvas, by its colour: the test's clips show a yellow ball of radius 26
 * on grey, and object 1 is red.
 */
export function findBall(page) {
  return page.evaluate(() => {
    const [width, height] = [image.width, image.height];
    const { data } = canvasPixels();
    const sums = { n: 0, x: 0, y: 0 };
    for (let i = 0; i < width * height; i++) {
      if (data[4 * i] - data[4 * i + 2] > 90) {
        sums.n++;
        sums.x += i % width;
        sums.y += Math.floor(i / width);
      }
    }
    return { x: sums.x / sums.n, y: sums.y / sums.n, pixels: sums.n };
  });
}

/**
 * From now on, every picture that is painted with a mask is judged by its pixels: how well what is
 * tinted covers the ball of the same picture. `judged` of the page gets {index, iou, ball, ids}.
 */
export async function judgePictures(page) {
  await page.evaluate(() => {
    globalThis.judged = [];
    vosengine.stream.addEventListener("shown", () => {
      const { frame, labels } = vosengine.stream.shown;
      if (!labels) return;
      const { data } = canvasPixels();
      let [both, either, ball] = [0, 0, 0];
      for (let i = 0; i < data.length; i += 4) {
        // grey 96 -> tinted (176, 93, 96); yellow (230, 210, 50) -> tinted (242, 150, 72)
        const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
        if (r > 245 && g < 110) continue; // the mask's edge, which is opaque
        const yellow = r - b > 110;
        const tinted = r - g > 50;
        if (yellow) ball++;
        if (yellow && tinted) both++;
        if (yellow || tinted) either++;
      }
      judged.push({ index: frame.index, iou: both / either, ball, ids: [...vosengine.stream.ids] });
    });
  });
}

/** Waits until so many pictures were judged, and returns them. */
export async function judgedPictures(page, count) {
  await page.waitForFunction((n) => judged.length >= n, count);
  return page.evaluate(() => judged);
}

/** Object `id` drawn over the ball with one dab of a brush of its size. */
export async function dabBall(page) {
  const ball = await findBall(page);
  assert.ok(ball.pixels > 1500, `no ball in the picture: ${JSON.stringify(ball)}`);
  await page.fill("#size", String(2 * RADIUS));
  await stroke(page, [[ball.x, ball.y]]);
}

/** Masks belong to their pictures: one that is a frame late covers less than .7 of the ball. */
export function assertFollows(pictures, least = 0.7) {
  const scores = pictures.map(({ iou }) => iou).sort((a, b) => a - b);
  const median = scores[scores.length >> 1];
  assert.ok(
    median > 0.8 && scores[0] > least,
    `masks cover the ball by ${scores.map((s) => s.toFixed(2))}`,
  );
}
