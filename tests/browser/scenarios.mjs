// What a person does with the page.

import assert from "node:assert/strict";
import { join } from "node:path";
import {
  RADIUS,
  assertFollows,
  dabBall,
  findBall,
  given,
  judgePictures,
  judgedPictures,
  openClip,
  openPage,
  picture,
  stroke,
} from "./harness.mjs";

export const scenarios = {
  async camera(browser) {
    const { page, close } = await openPage(browser);
    await page.selectOption("#detail", "128");
    await page.click("#empty-camera");
    await page.waitForFunction(() => vosengine.stream.shown?.frame.index > 2);
    assert.equal(page.url(), given.url, "the token left the address");
    await picture(page, "camera-hint");
    await page.keyboard.press(" ");
    await dabBall(page);
    await picture(page, "camera-draft");
    await judgePictures(page);
    await page.keyboard.press("Enter");
    assertFollows(await judgedPictures(page, 10));

    // Pointer down holds the picture that is shown, and that picture goes back with the mask.
    await page.keyboard.press("2");
    await stroke(page, [
      [20, 20],
      [40, 20],
    ]);
    const held = await page.evaluate(() => vosengine.stream.shown.frame.index);
    await page.waitForTimeout(400);
    assert.equal(await page.evaluate(() => vosengine.stream.shown.frame.index), held);
    await page.evaluate(() => (judged.length = 0));
    await page.keyboard.press("Enter");
    const after = await judgedPictures(page, 4);
    assert.ok(
      after.some(({ index }) => index === held),
      "the held picture came back first",
    );
    assert.deepEqual(after.at(-1).ids, [1, 2]);
    assert.equal(await page.locator("#remove").isEnabled(), true);
    await page.click("#remove");
    await page.waitForFunction(() => String(vosengine.stream.ids) === "1");
    await picture(page, "camera-followed");
    await close();
  },

  async file(browser) {
    const { page, close } = await openPage(browser);
    await openClip(page);
    const ball = await findBall(page);
    await page.keyboard.press("l");
    const circle = Array.from({ length: 17 }, (_, i) => [
      ball.x + RADIUS * Math.cos((i * Math.PI) / 8),
      ball.y + RADIUS * Math.sin((i * Math.PI) / 8),
    ]);
    await stroke(page, circle);
    await judgePictures(page);
    await page.click("#commit");
    await page.waitForFunction(
      () => vosengine.stream.source.progress === 1 && !vosengine.stream.playing,
    );
    const frames = 24;
    await page.waitForFunction((n) => vosengine.history.length === n, frames);
    const pictures = await page.evaluate(() => judged);
    assertFollows(pictures);
    const indices = pictures.map(({ index }) => index);
    assert.deepEqual(
      indices,
      [...indices].sort((a, b) => a - b),
      "in the order of the video",
    );
    assert.equal(new Set(indices).size, frames);
    for (const [button, name] of [
      ["#save-json", "masks.json"],
      ["#save-png", "mask.png"],
    ]) {
      const [saved] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
      await saved.saveAs(join(given.out, name));
    }
    await page.click("#reset");
    await page.waitForFunction(
      () => !vosengine.stream.ids.length && vosengine.history.length === 0,
    );
    await page.waitForFunction(() => vosengine.stream.shown.frame.index === 0);
    await close();
  },

  async player(browser) {
    const { page, close } = await openPage(browser);
    await openClip(page, given.webm);
    await dabBall(page);
    await judgePictures(page);
    await page.click("#record");
    await page.click("#commit");
    assertFollows(await judgedPictures(page, 5), 0.5);
    const [saved] = await Promise.all([page.waitForEvent("download"), page.click("#record")]);
    await saved.saveAs(join(given.out, "overlay.webm"));
    await close();
  },

  async sources(browser) {
    const { page, close } = await openPage(browser);
    await page.selectOption("#detail", "128");
    const opened = (name) =>
      page.waitForFunction(
        (wanted) => vosengine.stream.source?.name === wanted && vosengine.stream.shown,
        name,
      );
    await page.click("#camera");
    await page.waitForFunction(() => vosengine.stream.shown?.frame.index > 1);
    // Each is left while it plays.
    for (const [file, name] of [
      [given.clip, "ball.mp4"],
      [given.webm, "ball.webm"],
      [given.clip, "ball.mp4"],
    ]) {
      await page.setInputFiles("#file", file);
      await opened(name);
      await page.keyboard.press(" ");
    }
    const data = await page.evaluate(() => image.toDataURL("image/png").split(",")[1]);
    const buffer = Buffer.from(data, "base64");
    await page.setInputFiles("#file", { name: "still.png", mimeType: "image/png", buffer });
    await opened("still.png");
    await page.waitForFunction(() => vosengine.stream.shown.frame.index === 0);
    await dabBall(page);
    await judgePictures(page);
    await page.keyboard.press("Enter");
    assertFollows(await judgedPictures(page, 1));
    const text = { name: "notes.mp4", mimeType: "video/mp4", buffer: Buffer.from("no video") };
    await page.setInputFiles("#file", text);
    await page.waitForFunction(() =>
      /notes.mp4 is no video/.test(document.getElementById("notice").textContent),
    );
    await close();
  },

  async prompts(browser) {
    const { page, close } = await openPage(browser);
    await openClip(page);
    const { x, y } = await findBall(page);
    const preview = () => page.waitForFunction(() => vosengine.editor.assist?.previewed);
    const drawn = () =>
      page.evaluate(() => vosengine.editor.draft?.map.data.filter((id) => id).length ?? 0);
    await page.keyboard.press("r");
    const corners = [
      [x - 34, y - 34],
      [x + 34, y + 34],
    ];
    await stroke(page, corners);
    await preview();
    await picture(page, "box-preview");
    const area = await drawn();
    assert.ok(Math.abs(area - Math.PI * RADIUS ** 2) < 500, `the outline has ${area} pixels`);
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => !vosengine.editor.draft && !vosengine.stream.held);
    assert.equal(await page.evaluate(() => vosengine.stream.following), false, "nothing was sent");

    await stroke(page, corners);
    await preview();
    await page.keyboard.press("c");
    await page.keyboard.down("Alt");
    await stroke(page, [[x - 31, y - 31]]);
    await page.keyboard.up("Alt");
    await page.waitForFunction(
      () => vosengine.editor.assist.points.length === 1 && !vosengine.editor.busy,
    );
    assert.equal(await page.evaluate(() => vosengine.editor.assist.points[0].positive), false);
    await judgePictures(page);
    await page.keyboard.press("Enter");
    assertFollows(await judgedPictures(page, 4));
    await close();
  },

  async undo(browser) {
    const { page, close } = await openPage(browser);
    await openClip(page);
    const drawn = () =>
      page.evaluate(() => vosengine.editor.draft?.map.data.filter((id) => id).length ?? 0);
    await dabBall(page);
    const one = await drawn();
    await stroke(page, [
      [20, 20],
      [80, 20],
    ]);
    const two = await drawn();
    assert.ok(two > one + 1000);
    await page.keyboard.press("Control+z");
    assert.equal(await drawn(), one);
    await page.keyboard.press("Control+Shift+z");
    assert.equal(await drawn(), two);
    await page.keyboard.press("Control+z");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => vosengine.history.length > 2);
    // What was sent comes back with one stroke less: of the object nothing is left.
    await page.keyboard.press("Control+z");
    await page.waitForFunction(() => vosengine.editor.draft && vosengine.stream.held);
    assert.equal(await drawn(), 0);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => vosengine.stream.ids.length === 0);
    await close();
  },

  async reload(browser) {
    const { page, close } = await openPage(browser);
    await openClip(page);
    await dabBall(page);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => vosengine.history.length > 4);
    await page.keyboard.press(" ");
    await page.waitForFunction(() => vosengine.stream.shown.frame.index >= 4);
    const state = () =>
      page.evaluate(() => ({
        id: vosengine.live.connection.session.id,
        next: vosengine.live.connection.nextFrame,
        index: vosengine.stream.shown?.frame.index,
      }));
    await page.waitForTimeout(500);
    const before = await state();
    await page.reload();
    await page.waitForFunction(() => vosengine.live.connection?.isOpen);
    assert.match(await page.textContent("#notice"), /goes on/);
    await page.setInputFiles("#file", given.clip);
    await page.waitForFunction(() => vosengine.stream.shown);
    await judgePictures(page);
    await page.keyboard.press(" ");
    assertFollows(await judgedPictures(page, 4));
    const after = await state();
    assert.equal(after.id, before.id, "the same session");
    assert.ok(
      after.next > before.next && after.index >= before.index,
      JSON.stringify([before, after]),
    );
    await close();
  },

  async restart(browser, actions) {
    const { page, close } = await openPage(browser, {
      expected: ["ERR_CONNECTION_REFUSED", "WebSocket", "Failed to load"],
    });
    await openClip(page);
    await dabBall(page);
    await judgePictures(page);
    await page.keyboard.press("Enter");
    await judgedPictures(page, 6);
    await actions.ask("kill");
    await page.waitForFunction(() => /away/.test(document.getElementById("notice").textContent));
    await picture(page, "server-away");
    await page.evaluate(() => (judged.length = 0));
    await actions.ask("start");
    assertFollows(await judgedPictures(page, 6));
    assert.equal(await page.locator("#notice").isVisible(), false);

    // A server that knows nothing of the session: it begins anew, and what is drawn is followed.
    await page.keyboard.press(" ");
    for (const what of ["kill", "forget", "start"]) await actions.ask(what);
    await page.waitForFunction(() =>
      /no longer/.test(document.getElementById("notice").textContent),
    );
    assert.equal(await page.evaluate(() => vosengine.stream.shown.labels), null);
    await page.evaluate(() => (judged.length = 0));
    await dabBall(page);
    await page.keyboard.press("Enter");
    assertFollows(await judgedPictures(page, 2));
    await close();
  },

  async keyboard(browser) {
    const { page, close } = await openPage(browser);
    await page.selectOption("#detail", "128");
    page.on("filechooser", (chooser) => chooser.setFiles(given.clip));
    const press = async (keys) => {
      for (const key of keys.split(" ")) await page.keyboard.press(key === "Space" ? " " : key);
    };
    for (let i = 0; i < 40; i++) {
      await press("Tab");
      if (await page.evaluate(() => document.activeElement.id === "empty-open")) break;
    }
    await press("Enter");
    await page.waitForFunction(
      () => vosengine.stream.shown && document.activeElement.id === "marks",
    );
    const ball = await findBall(page); // at (250, 120); the cursor begins in the middle, (160, 120)
    assert.ok(Math.hypot(ball.x - 250, ball.y - 120) < 3);
    await press("? Escape r");
    const times = (key, n) => press(Array(n).fill(key).join(" "));
    await times("ArrowRight", 6); // 220
    await times("ArrowUp", 3); // 90
    await press("x");
    await times("ArrowRight", 6);
    await times("ArrowDown", 6);
    await picture(page, "keyboard-box");
    await press("x");
    await page.waitForFunction(() => vosengine.editor.assist?.previewed);
    await page.waitForFunction(() =>
      /Outline of/.test(document.getElementById("live").textContent),
    );
    await judgePictures(page);
    await press("Enter");
    assertFollows(await judgedPictures(page, 3));
    await press("Space");
    await page.waitForFunction(() => !vosengine.stream.playing);
    await page.waitForTimeout(600);
    const shown = () => page.evaluate(() => vosengine.stream.shown.frame.index);
    const before = await shown();
    await press(".");
    await page.waitForFunction((index) => vosengine.stream.shown.frame.index === index + 1, before);
    await close();
  },

  async token(browser) {
    const { page, close } = await openPage(browser, { hash: "", expected: ["401"] });
    await page.waitForSelector("#token-dialog[open]");
    await page.fill("#token", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() =>
      /not this server's/.test(document.getElementById("token-text").textContent),
    );
    await page.fill("#token", given.token);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => /demo/.test(document.getElementById("model").textContent));
    assert.equal(await page.locator("#token-dialog").isVisible(), false);
    await close();
  },

  async maskless(browser) {
    const { page, close } = await openPage(browser);
    await page.route("**/v1/sessions", async (route) => {
      const response = await route.fetch();
      const json = await response.json();
      await route.fulfill({ response, json: { ...json, takes_mask: false } });
    });
    await openClip(page);
    await page.waitForFunction(() => document.getElementById("tools").disabled);
    assert.match(await page.getAttribute("#tools", "title"), /takes no mask/);
    await stroke(page, [
      [100, 100],
      [150, 100],
    ]);
    assert.equal(await page.evaluate(() => vosengine.editor.draft), null);
    await close();
  },
};
