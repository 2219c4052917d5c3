// Entry point of the page: event handlers of its controls.

import { Api, Refused, Unreachable } from "./api.js";
import { announce, element, notice } from "./dom.js";
import { Drawing } from "./draw.js";
import { Editor } from "./editor.js";
import { History } from "./history.js";
import { listen } from "./keys.js";
import { Live } from "./live.js";
import { Objects } from "./objects.js";
import { encodePng } from "./png.js";
import { download, Recorder } from "./save.js";
import { keepToken, takeToken } from "./session.js";
import { openCamera, openFile } from "./source.js";
import { Stats } from "./stats.js";
import { Stream } from "./stream.js";
import { View } from "./view.js";

const STATUS_MS = 500;
const MEMORY_MS = 3000;
const RETRY_MS = 1500;
const TAKES_NONE = "This server's model takes no mask: it finds what moves by itself.";
const AWAY = "The server is away. This goes on as soon as it is back.";

const view = new View(element("frame"), element("image"), element("marks"), element("stage"));
const [stats, history] = [new Stats(), new History()];
const stream = new Stream(view, stats, history);
const live = new Live(stream, showState);
const editor = new Editor(stream, () => live.api);
const drawing = new Drawing(element("marks"), view, editor, announce);
const recorder = new Recorder(view.canvas);
const objects = new Objects({
  select: (id) => {
    drawing.object = id;
    drawing.mark();
  },
  remove: (id) => live.connection?.isOpen && live.connection.send({ type: "remove", object: id }),
});

/** State of the page's stream, for scripts and tests. */
globalThis.vosengine = { stream, stats, live, editor, history };

// --- sources ---------------------------------------------------------------------------------

async function choose(open, isLive) {
  notice("Opening…", { waiting: true });
  try {
    const source = await open();
    editor.clear();
    await live.begin(source, Number(element("detail").value) || undefined);
    showSource(source);
  } catch (error) {
    fail(error);
    return;
  }
  notice(live.takesMask ? null : TAKES_NONE, { seconds: 8 });
  if (isLive || !stream.needsMask) stream.play();
}

function showSource(source) {
  element("empty").hidden = true;
  element("frame").hidden = false;
  element("source").textContent = source.live ? "Camera" : source.name;
  const tools = element("tools");
  tools.disabled = !live.takesMask;
  drawing.enabled = live.takesMask;
  tools.title = live.takesMask ? "" : TAKES_NONE;
  update();
  focusPicture();
}

const useCamera = () => choose(openCamera, true);
const useFile = (file) => file && choose(() => openFile(file), false);
const pickFile = () => element("file").click();

element("file").addEventListener("change", ({ target }) => {
  useFile(target.files[0]);
  target.value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("target").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element("target").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("target").hidden = true;
  useFile(event.dataTransfer.files[0]);
});

// --- playing and drawing -----------------------------------------------------------------------

async function toggle() {
  if (!stream.source) return;
  if (editor.draft) {
    commit();
    return;
  }
  if (stream.playing) stream.pause();
  else {
    if (stream.ended) await stream.rewind();
    stream.play();
  }
  announce(stream.playing ? "Playing" : "Paused");
}

async function commit() {
  const first = !stream.following;
  focusPicture();
  await editor.commit();
  if (first && stream.following) stream.play();
}

function focusPicture() {
  element("marks").focus({ preventScroll: true });
}

function step() {
  if (editor.draft) commit();
  else if (stream.source) stream.step();
}

function drop() {
  focusPicture();
  if (drawing.drawing) {
    drawing.cancel();
    editor.letGo();
  } else editor.drop();
}

function resize(diameter) {
  const size = element("size");
  size.value = Math.round(diameter);
  drawing.diameter = Number(size.value);
  element("size-value").textContent = `${size.value} px`;
  drawing.mark();
}

function useTool(name) {
  if (element("tools").disabled) return;
  const input = document.querySelector(`[name=tool][value=${name}]`);
  input.checked = true;
  drawing.tool = name;
  drawing.mark();
  announce(`Tool: ${name}`);
}

function setOpacity(percent) {
  view.opacity = percent / 100;
  element("opacity-value").textContent = `${percent} %`;
  stream.repaint(editor.draft?.map);
}

const undo = () => editor.undo();
const redo = () => editor.redo();
const help = () => element("help").showModal();
const clicks = {
  camera: useCamera,
  "empty-camera": useCamera,
  open: pickFile,
  "empty-open": pickFile,
  play: toggle,
  step,
  undo,
  redo,
  commit,
  drop,
  "help-open": help,
};
for (const [id, act] of Object.entries(clicks)) element(id).addEventListener("click", act);
element("size").addEventListener("input", ({ target }) => resize(Number(target.value)));
element("opacity").addEventListener("input", ({ target }) => setOpacity(Number(target.value)));
element("eager").addEventListener("change", ({ target }) => (editor.eager = target.checked));
for (const input of document.querySelectorAll("[name=tool]")) {
  input.addEventListener("change", () => useTool(input.value));
}
element("more").addEventListener("click", () =>
  showPanel(!element("panel").classList.contains("open")),
);
element("stage").addEventListener("pointerdown", () => showPanel(false));
listen(
  {
    toggle,
    step,
    commit,
    drop,
    object: (id) => {
      objects.select(id);
      announce(`Object ${id}`);
    },
    tool: useTool,
    resize: (factor) =>
      resize(Math.max(drawing.diameter * factor, drawing.diameter + Math.sign(factor - 1))),
    undo,
    redo,
    help,
  },
  () => element("letters").checked,
);

function showPanel(open) {
  element("panel").classList.toggle("open", open);
  element("more").setAttribute("aria-expanded", open);
}

// --- saving and starting over ------------------------------------------------------------------

element("save-png").addEventListener("click", async () => {
  const { frame, labels } = stream.shown;
  const name = `mask-${String(frame.index).padStart(5, "0")}.png`;
  download(await encodePng(labels, { palette: true }), name);
});
element("save-json").addEventListener("click", async () => {
  download(await history.toCoco(stream.source?.name ?? "stream"), "masks.json");
});
element("record").addEventListener("click", async ({ currentTarget: button }) => {
  if (recorder.active) {
    const { blob, extension } = await recorder.stop();
    download(blob, `overlay.${extension}`);
  } else recorder.start();
  button.setAttribute("aria-pressed", recorder.active);
  button.textContent = recorder.active ? "Stop and save the recording" : "Record the picture";
});
element("reset").addEventListener("click", async () => {
  editor.clear();
  await live.reset();
  objects.follow([]);
  if (stream.source.live) stream.play();
  announce("Started over. Nothing is followed.");
});

// --- what is shown -----------------------------------------------------------------------------

function fail(error) {
  notice(error.message, { seconds: 12 });
  update();
}

function showState(state) {
  update();
  if (state === "open" && element("notice-text").textContent === AWAY) notice(null);
  if (state === "lost") notice(AWAY, { waiting: true });
  if (state === "resumed") notice("The session goes on. Choose its source again.", { seconds: 20 });
  if (state === "began anew") {
    editor.clear();
    notice("The server knows the session no longer: draw your objects once more.", { seconds: 12 });
  }
  if (state === "taken") {
    notice("This session is open in another window.", {
      act: { label: "Use it here", run: () => live.connection.open() },
    });
  }
}

function update() {
  const { source, shown, playing, ids } = stream;
  const { draft } = editor;
  objects.follow(ids);
  element("play").disabled = element("step").disabled = !source;
  element("play").setAttribute("aria-label", playing && !draft ? "Pause" : "Play");
  element("undo").disabled = !editor.canUndo;
  element("redo").disabled = !editor.canRedo;
  element("reset").disabled = !source || !live.connection?.isOpen;
  element("save-png").disabled = !shown?.labels;
  element("save-json").disabled = history.length === 0;
  element("record").disabled = !shown;
  element("held").hidden = !draft;
  element("progress").hidden = source?.live !== false || Boolean(draft);
  element("commit").disabled = editor.busy;
  element("held-text").textContent = editor.busy ? "Looking for the outline…" : heldText();
  element("hint").hidden = !shown || Boolean(draft) || stream.following || !live.takesMask;
}

function heldText() {
  return editor.assist?.previewed ? "Is this the object?" : "The picture waits while you draw";
}

function showStatus() {
  const { progress } = stream.source ?? {};
  element("rate").textContent = stats.frames ? stats.rate.toFixed(1) : "–";
  element("latency").textContent = stats.frames ? `${Math.round(stats.latency)} ms` : "–";
  element("dropped").textContent = stats.dropped;
  element("progress").value = progress || 0;
}

async function showMemory() {
  const bytes = await live.memory();
  element("memory").textContent = bytes === null ? "–" : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

stream.addEventListener("shown", update);
stream.addEventListener("changed", update);
stream.addEventListener("ended", () => {
  update();
  announce("End of the video.");
});
for (const part of [stream, editor]) {
  part.addEventListener("failed", ({ detail }) => {
    fail(detail);
    announce(detail.message);
  });
}
editor.addEventListener("changed", update);
editor.addEventListener("sent", () => announce("Sent. The mask follows."));
editor.addEventListener("preview", ({ detail: pixels }) => {
  const share = Math.round((100 * pixels) / (view.canvas.width * view.canvas.height));
  announce(`Outline of ${share} percent of the picture. Enter follows it, Escape drops it.`);
});

// --- start -------------------------------------------------------------------------------------

async function start(token) {
  if (!token) return askToken();
  live.api = new Api(token);
  let resumed;
  try {
    await live.api.sessions();
    notice(null);
    await showModel();
    resumed = await live.resume();
  } catch (error) {
    if (error.status === 401) return askToken("That token is not this server's.");
    if (!(error instanceof Unreachable || error instanceof Refused)) throw error;
    notice(error instanceof Refused ? error.message : AWAY, { waiting: true });
    setTimeout(() => start(token), RETRY_MS);
    return undefined;
  }
  if (resumed?.source?.live && (await cameraAllowed())) useCamera();
  return undefined;
}

async function showModel() {
  const [{ name, weights, device, precision, trained }] = (await live.api.models()).models;
  element("model").textContent = `${name}.${weights} on ${device}, ${precision}`;
  if (!trained) notice("The weights of this server are RANDOM: its masks are noise.");
}

async function cameraAllowed() {
  const leave = await navigator.permissions.query({ name: "camera" });
  return leave.state === "granted";
}

function askToken(complaint) {
  if (complaint) element("token-text").textContent = complaint;
  element("token-dialog").showModal();
}

element("token-form").addEventListener("submit", () => {
  keepToken(element("token").value.trim());
  start(takeToken());
});
resize(24);
setOpacity(50);
setInterval(showStatus, STATUS_MS);
setInterval(showMemory, MEMORY_MS);
start(takeToken());
