// The page: choose a video, outline an object, and follow it.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { WebSegmenter } from "./segmenter.mjs";

const FRAMES_PER_SECOND = 12; // frames of the video that are segmented
const SIZE = 192; // short side of the network's input, in pixels: smaller is faster
const COLOUR = [255, 80, 60];
const OPACITY = 0.5;

// Threads need cross-origin isolation, which a plain file server does not provide.
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

const element = (id) => document.getElementById(id);
const [view, follow, status, file] = ["view", "follow", "status", "file"].map(element);
const context = view.getContext("2d", { willReadFrequently: true });
const video = document.createElement("video");
video.muted = true;
let outline = [];
let running = false;

const event = (target, name) =>
  new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", () => reject(new Error("the video cannot be read")), {
      once: true,
    });
  });

async function seek(seconds) {
  const done = event(video, "seeked");
  video.currentTime = seconds;
  await done;
  context.drawImage(video, 0, 0, view.width, view.height);
  return context.getImageData(0, 0, view.width, view.height);
}

/** Mask of the outline: Uint8Array, 1 inside. */
function outlined() {
  const mask = new OffscreenCanvas(view.width, view.height).getContext("2d");
  mask.beginPath();
  for (const [x, y] of outline) mask.lineTo(x, y);
  mask.fill();
  const { data } = mask.getImageData(0, 0, view.width, view.height);
  return Uint8Array.from({ length: view.width * view.height }, (_, i) => +(data[4 * i + 3] > 127));
}

function paint(frame, labels) {
  for (let pixel = 0; pixel < labels.length; pixel++) {
    if (labels[pixel] === 0) continue;
    for (let channel = 0; channel < 3; channel++) {
      const index = 4 * pixel + channel;
      frame.data[index] += OPACITY * (COLOUR[channel] - frame.data[index]);
    }
  }
  context.putImageData(frame, 0, 0);
}

async function run(segmenter) {
  running = true;
  follow.disabled = true;
  segmenter.reset();
  let prompt = outlined();
  const started = performance.now();
  for (let index = 0; index / FRAMES_PER_SECOND < video.duration; index++) {
    const frame = await seek(index / FRAMES_PER_SECOND);
    paint(frame, await segmenter.step(frame, prompt));
    prompt = null;
    const each = (performance.now() - started) / (index + 1);
    status.textContent = `Frame ${index + 1}, ${each.toFixed(0)} ms a frame`;
  }
  running = false;
  outline = [];
}

file.addEventListener("change", async () => {
  video.src = URL.createObjectURL(file.files[0]);
  await event(video, "loadeddata");
  [view.width, view.height] = [video.videoWidth, video.videoHeight];
  outline = [];
  await seek(0);
  status.textContent = "Draw around an object";
});

view.addEventListener("pointerdown", (down) => {
  if (running || !video.src) return;
  outline = [];
  view.setPointerCapture(down.pointerId);
});
view.addEventListener("pointermove", (move) => {
  if (running || !view.hasPointerCapture(move.pointerId)) return;
  const scale = view.width / view.clientWidth;
  outline.push([move.offsetX * scale, move.offsetY * scale]);
  context.strokeStyle = `rgb(${COLOUR})`;
  context.lineWidth = 2 * scale;
  context.beginPath();
  for (const [x, y] of outline.slice(-2)) context.lineTo(x, y);
  context.stroke();
});
view.addEventListener("pointerup", () => {
  follow.disabled = outline.length < 3;
});

try {
  const segmenter = await WebSegmenter.open(ort, "model", { size: SIZE });
  status.textContent = "Choose a video";
  follow.addEventListener("click", () =>
    run(segmenter).catch((error) => {
      running = false;
      status.textContent = error.message;
    }),
  );
} catch (error) {
  status.textContent = error.message;
}
