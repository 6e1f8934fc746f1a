// The page: a tile a camera, one of them large on request, all of them still on request.

import { drawCurve, drawScene, trackColour } from "./draw.js";
import { Link } from "./link.js";

const HISTORY_S = 60;
const KEPT_FRAMES = 90;
const CURVE_MS = 250;
const PAIRED_MS = 150;

const find = (selector, root = document) => root.querySelector(selector);
const cameras = new Map();
const tiles = find(".tiles");
const page = { paused: false, live: false, problem: "", endpoint: "", focus: "" };

class Camera {
  constructor(source) {
    this.source = source;
    this.state = "";
    this.changed = 0;
    this.latencies = [];
    this.frames = new Map(); // the last ones by index, to find the one that a picture shows
    this.visible = false; // until `watcher` has looked
    this.dirty = true;
    this.tile = find("#tile").content.firstElementChild.cloneNode(true);
    this.tile.dataset.source = source;
    this.canvas = find(".stage canvas", this.tile);
    find(".name", this.tile).textContent = source;
    find(".stage", this.tile).setAttribute("aria-label", `Camera ${source}`);
    find(".stage", this.tile).addEventListener("click", () => show(page.focus ? "" : source));
    watcher.observe(this.tile);
    sizes.observe(this.canvas);
  }

  update(news) {
    this.state = news.state;
    this.changed = news.changed_s;
    this.fps = news.fps;
    this.missed = news.missed;
    if (news.hello) this.hello = news.hello;
    if (news.frame) {
      if (news.frame.index !== this.frame?.index) this.latencies.push([performance.now() / 1000, news.frame.latency_ms]);
      this.frame = news.frame;
      this.frames.set(news.frame.index, news.frame);
      while (this.frames.size > KEPT_FRAMES) this.frames.delete(this.frames.keys().next().value);
      while (this.latencies.length && performance.now() / 1000 - this.latencies[0][0] > HISTORY_S) this.latencies.shift();
      const aspect = news.frame.width / news.frame.height;
      this.tile.style.setProperty("--own", String(aspect));
      this.tile.style.setProperty("--aspect", String(Math.min(16 / 9, Math.max(cameras.size > 1 ? 1 : 0.5, aspect))));
    }
    this.dirty = true;
  }

  async setPicture(index, blob) {
    const picture = await createImageBitmap(blob).catch(() => null);
    if (page.paused) picture?.close();
    if (!picture || page.paused) return;
    const now = performance.now();
    this.picture?.close();
    this.picture = picture;
    this.pictureIndex = index;
    this.pictureEvery = now - (this.pictureAt ?? -Infinity);
    this.pictureAt = now;
    this.dirty = true;
  }

  /** What it is now: nothing that a publisher said still holds when the publisher is gone. */
  get shownState() {
    return page.live || this.state === "ended" ? this.state : "offline";
  }

  /** The frame to draw: that of the picture while pictures come quickly, so that the two fit; else the newest. */
  get shownFrame() {
    const quick = this.pictureEvery < PAIRED_MS && performance.now() - this.pictureAt < 2 * PAIRED_MS;
    if (!quick && !page.paused) return this.frame;
    return [0, -1, 1, -2, 2].map((step) => this.frames.get(this.pictureIndex + step)).find(Boolean) ?? this.frame;
  }

  draw() {
    this.dirty = false;
    const frame = this.shownFrame;
    const state = this.shownState;
    const { tile } = this;
    tile.dataset.state = state;
    find(".state", tile).textContent = state || "waiting";
    find(".veil", tile).textContent = state === "offline" ? `Offline${since(this.changed)}` : state === "ended" ? "Ended" : "";
    const people = state === "offline" ? [] : (frame?.people ?? []);
    drawScene(this.canvas, frame && { ...frame, people }, this.hello, this.picture);
    this.#figure("fps", this.frame && state !== "offline" && state !== "ended" ? this.fps.toFixed(1) : "–");
    this.#figure("latency", this.frame ? `${Math.round(this.frame.latency_ms)} ms` : "–");
    this.#figure("people", frame ? String(people.length) : "–");
    this.#figure("dropped", this.frame ? String(this.frame.dropped) : "–");
    this.#figure("missed", this.frame ? String(this.missed) : "–", this.missed > 0);
    if (tile.classList.contains("focused")) this.#details(frame, people);
  }

  drawCurves() {
    const now = performance.now() / 1000;
    const focused = this.tile.classList.contains("focused");
    drawCurve(find(focused ? ".chart" : ".curve canvas", this.tile), this.latencies, now, { axis: focused, span: focused ? 60 : 30 });
  }

  #figure(name, text, lossy = false) {
    const field = find(`[data-figure="${name}"]`, this.tile);
    if (field.textContent !== text) field.textContent = text;
    field.parentElement.classList.toggle("lossy", lossy);
  }

  #details(frame, people) {
    find(".people", this.tile).replaceChildren(...(people.length ? people.map(personLine) : [element("li", "none", "Nobody in view")]));
    const facts = frame && {
      frame: frame.index,
      size: `${frame.width} × ${frame.height}`,
      model: this.hello?.model ?? "–",
      skeleton: this.hello?.skeleton ?? "–",
      epoch: frame.epoch,
      clock: frame.clock,
    };
    const lines = Object.entries(facts ?? {}).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]);
    find(".facts", this.tile).replaceChildren(...lines);
  }
}

function personLine({ id, score, filled }) {
  const line = element("li", "", "");
  const swatch = element("span", "swatch", "");
  swatch.style.background = trackColour(id);
  const bar = element("span", "bar-of", "");
  const level = element("i", "", "");
  level.style.width = `${100 * score}%`;
  level.style.background = trackColour(id);
  bar.append(level);
  line.append(swatch, element("span", "", String(id)), bar, element("span", "", filled ? "bridged" : score.toFixed(2)));
  return line;
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

function since(seconds) {
  return seconds && page.live ? ` since ${new Date(1000 * seconds).toLocaleTimeString()}` : "";
}

/** Shows one camera large, or with "" all of them; the address keeps it. */
function show(source) {
  const hash = source ? `#${encodeURIComponent(source)}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname);
  layOut();
}

function layOut() {
  let wanted = "";
  try {
    wanted = decodeURIComponent(location.hash.slice(1));
  } catch {
    wanted = "";
  }
  page.focus = cameras.has(wanted) ? wanted : "";
  const count = cameras.size;
  tiles.toggleAttribute("data-focus", Boolean(page.focus));
  tiles.toggleAttribute("data-dense", count > 6);
  tiles.toggleAttribute("data-single", count === 1 && !page.focus);
  const width = count <= 1 ? 900 : count <= 4 ? 460 : count <= 6 ? 400 : count <= 9 ? 340 : 250;
  tiles.style.setProperty("--tile", `${width}px`);
  find(".back").hidden = !page.focus;
  for (const camera of cameras.values()) {
    camera.tile.classList.toggle("focused", camera.source === page.focus);
    camera.dirty = true;
  }
  look();
}

/** Asks for the pictures of the cameras that are on the screen. */
function look() {
  const seen = [...cameras.values()].filter((camera) => (page.focus ? camera.source === page.focus : camera.visible));
  link.look(page.paused || document.hidden ? [] : seen.map((camera) => camera.source));
}

function pause(on) {
  page.paused = on;
  find(".pause").setAttribute("aria-pressed", String(on));
  find(".pause span").textContent = on ? "Resume" : "Pause";
  for (const camera of cameras.values()) camera.dirty = true;
  if (!on) for (const [source, news] of held) take(source, news);
  held.clear();
  look();
}

const held = new Map(); // what came last while paused

function take(source, news) {
  let camera = cameras.get(source);
  if (!camera) {
    camera = new Camera(source);
    cameras.set(source, camera);
    const after = [...cameras.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const next = after[after.indexOf(source) + 1];
    tiles.insertBefore(camera.tile, next ? cameras.get(next).tile : null);
    camera.update(news);
    layOut();
  } else {
    camera.update(news);
  }
}

function tell() {
  const online = [...cameras.values()].filter((camera) => camera.shownState === "online").length;
  const state = page.socket !== "live" ? "lost" : page.live ? "live" : page.problem.startsWith("connecting") ? "waiting" : "lost";
  const text = page.socket === "refused" ? "the token is not valid any more; reload the page"
    : page.socket === "full" ? "too many browsers show this page already"
    : page.socket === "lost" ? "streampose view does not answer" : page.problem || page.endpoint;
  find(".link").dataset.state = state;
  find(".link-text").textContent = text;
  find(".link-text").title = text;
  const count = cameras.size;
  find(".summary").textContent = count ? `${count} ${count === 1 ? "camera" : "cameras"}, ${online} online` : "";
  find(".empty").hidden = count > 0;
  find(".empty-text").textContent = page.problem || "Connected; no camera has sent anything yet.";
}

function render() {
  for (const camera of cameras.values()) {
    if (camera.dirty && (page.focus ? camera.source === page.focus : camera.visible)) camera.draw();
  }
  requestAnimationFrame(render);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const camera = cameras.get(entry.target.dataset.source);
    if (camera) Object.assign(camera, { visible: entry.isIntersecting, dirty: true });
  }
  look();
}, { rootMargin: "120px" });

const sizes = new ResizeObserver(() => {
  for (const camera of cameras.values()) camera.dirty = true;
});

const link = new Link({
  onNews({ link: { live, problem, endpoint }, cameras: changed }) {
    if (live !== page.live) for (const camera of cameras.values()) camera.dirty = true;
    Object.assign(page, { live, problem, endpoint });
    for (const news of changed) {
      if (page.paused && cameras.has(news.source)) held.set(news.source, { ...held.get(news.source), ...news });
      else take(news.source, news);
    }
    tell();
  },
  onPicture: (source, index, blob) => page.paused || cameras.get(source)?.setPicture(index, blob),
  onState(state) {
    page.socket = state;
    if (state !== "live") page.live = false;
    for (const camera of cameras.values()) camera.dirty = true;
    tell();
  },
});

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

setTheme(localStorage.getItem("theme"));
find(".theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem("theme", dark ? "light" : "dark");
  setTheme(dark ? "light" : "dark");
});
find(".pause").addEventListener("click", () => pause(!page.paused));
find(".back").addEventListener("click", () => show(""));
addEventListener("popstate", layOut);
addEventListener("hashchange", layOut);
document.addEventListener("visibilitychange", look);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && page.focus) show("");
  if (event.key === " " && !event.target.closest("button, input")) {
    event.preventDefault();
    pause(!page.paused);
  }
  if (page.focus && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const order = [...tiles.children].map((tile) => tile.dataset.source);
    const step = event.key === "ArrowRight" ? 1 : order.length - 1;
    show(order[(order.indexOf(page.focus) + step) % order.length]);
  }
});
setInterval(() => {
  for (const camera of cameras.values()) if (!page.paused && camera.visible) camera.drawCurves();
}, CURVE_MS);
tell();
render();
