// The example of onnxruntime-web in Chromium: `node web_example.mjs URL WIDTH HEIGHT FRAMES CLIP`.
// Prints one line of JSON: the labels of FRAMES frames (frames.bin, prompt.bin beside the page) as
// base64, what the wrong calls said, and what the page said at the end of CLIP.

import { launch } from "./harness.mjs";

const [url, width, height, frames, clip] = process.argv.slice(2);

/** In the page: the stream over frames.bin, and calls that must be refused. */
async function stream({ width, height, frames }) {
  const ort = await import("/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs");
  const { WebSegmenter } = await import("/segmenter.mjs");
  ort.env.wasm.numThreads = 1;
  const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  const [data, prompts] = [await bytes("/frames.bin"), await bytes("/prompts.bin")];
  const segmenter = await WebSegmenter.open(ort, "/model");
  const refused = [];
  const refuse = async (...given) => {
    await segmenter.step(...given).catch((error) => refused.push(error.message));
  };
  const count = width * height;
  const frame = (index) => ({
    data: data.subarray(4 * count * index, 4 * count * (index + 1)),
    width,
    height,
  });
  await WebSegmenter.open(ort, "/ours").catch((error) => refused.push(error.message));
  const labels = new Uint8Array(count * frames);
  await refuse(frame(0));
  for (let index = 0; index < frames; index++) {
    const prompt = prompts.subarray(count * index, count * (index + 1));
    labels.set(await segmenter.step(frame(index), prompt.some((id) => id) ? prompt : null), count * index);
    if (index === 0) {
      await refuse({ ...frame(0), width: height, height: width });
      await refuse(frame(0), new Uint8Array(3));
    }
    if (index === frames - 3) segmenter.remove(1);
  }
  let text = "";
  for (let i = 0; i < labels.length; i += 8192) {
    text += String.fromCharCode(...labels.subarray(i, i + 8192));
  }
  return { labels: btoa(text), refused };
}

/** As a person does it: a file, an outline around the middle, and Follow. */
async function follow(page) {
  await page.waitForFunction(() => document.querySelector("#status").textContent === "Choose a video");
  await page.setInputFiles("#file", clip);
  await page.waitForFunction(() => document.querySelector("#status").textContent.startsWith("Draw"));
  const box = await page.locator("#view").boundingBox();
  const at = (turn) => [
    box.x + box.width * (0.5 + 0.2 * Math.cos(turn)),
    box.y + box.height * (0.5 + 0.2 * Math.sin(turn)),
  ];
  await page.mouse.move(...at(0));
  await page.mouse.down();
  for (let turn = 0; turn <= 6.3; turn += 0.3) await page.mouse.move(...at(turn));
  await page.mouse.up();
  await page.click("#follow");
  await page.waitForFunction(() => /^Frame [34],|wanted|cannot/.test(document.querySelector("#status").textContent));
  return page.locator("#status").textContent();
}

const browser = await launch();
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(90_000);
  await page.goto(url);
  const found = await page.evaluate(stream, { width: +width, height: +height, frames: +frames });
  const said = await follow(page);
  process.stdout.write(`${JSON.stringify({ ...found, said })}\n`);
} finally {
  await browser.close();
}
