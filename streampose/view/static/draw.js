// Poses and curves on canvases.

const SEEN = 0.3; // joints below this score are not drawn
const SURE = 0.55; // below this one they are drawn half transparent

/** The colour of a track, as `streampose run --render` paints it: hues a golden angle apart. */
export function trackColour(id, lightness = 58) {
  const hue = ((((0.47 + 0.381966 * (id - 1)) % 1) + 1) % 1) * 360;
  return `hsl(${hue.toFixed(1)} 88% ${lightness}%)`;
}

/** Gives a canvas as many pixels as the screen has for it, and returns its context and size in CSS pixels. */
export function fit(canvas) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const { clientWidth: width, clientHeight: height } = canvas;
  const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns;
    canvas.height = rows;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** The picture, if there is one, and over it everybody's skeleton. */
export function drawScene(canvas, frame, hello, picture) {
  const { context, width, height } = fit(canvas);
  const [wide, high] = frame ? [frame.width, frame.height] : hello ? [hello.width, hello.height] : [16, 9];
  const scale = Math.min(width / wide, height / high);
  const [left, top] = [(width - wide * scale) / 2, (height - high * scale) / 2];
  if (picture) {
    context.drawImage(picture, left, top, wide * scale, high * scale);
  } else {
    drawGround(context, left, top, wide * scale, high * scale);
  }
  if (!frame || !hello) return;
  context.lineCap = "round";
  context.lineJoin = "round";
  const place = ([x, y]) => [left + x * scale, top + y * scale];
  for (const person of [...frame.people].sort((a, b) => a.box[3] - b.box[3])) {
    drawPerson(context, person, hello, place, scale);
  }
}

function drawGround(context, left, top, width, height) {
  context.strokeStyle = "rgb(255 255 255 / 5%)";
  context.lineWidth = 1;
  const step = Math.max(24, width / 16);
  context.beginPath();
  for (let x = left + step; x < left + width; x += step) {
    context.moveTo(x, top);
    context.lineTo(x, top + height);
  }
  for (let y = top + step; y < top + height; y += step) {
    context.moveTo(left, y);
    context.lineTo(left + width, y);
  }
  context.stroke();
}

function drawPerson(context, person, hello, place, scale) {
  const [x1, y1, x2, y2] = person.box;
  const size = Math.max(x2 - x1, y2 - y1) * scale;
  const thick = Math.min(6, Math.max(1.6, size / 75));
  const sides = hello.joints.map((name) => name.split("_")[0]);
  const shades = { left: trackColour(person.id, 74), right: trackColour(person.id, 46) };
  const colour = trackColour(person.id);
  const points = person.joints.map(place);
  context.setLineDash(person.filled ? [thick * 1.5, thick * 2] : []);
  const limbs = [];
  for (const [a, b] of hello.edges) {
    if (a >= points.length || b >= points.length) continue;
    const score = Math.min(person.joints[a][2], person.joints[b][2]);
    if (score >= SEEN) limbs.push([points[a], points[b], sides[a] === sides[b] ? (shades[sides[a]] ?? colour) : colour, score]);
  }
  const stroke = (paint, width, alpha) => {
    for (const [from, to, shade, score] of limbs) {
      context.globalAlpha = alpha * (score < SURE ? 0.5 : 1);
      context.strokeStyle = paint ?? shade;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
    }
  };
  stroke("#0b0f14", thick * 1.9, 0.55);
  stroke(null, thick, 1);
  context.setLineDash([]);
  points.forEach((point, joint) => {
    const score = person.joints[joint][2];
    if (score < SEEN) return;
    context.globalAlpha = score < SURE ? 0.5 : 1;
    context.fillStyle = shades[sides[joint]] ?? colour;
    context.beginPath();
    context.arc(...point, thick * 1.05, 0, 2 * Math.PI);
    context.fill();
  });
  context.globalAlpha = 1;
  drawLabel(context, String(person.id), place([x1, y1]), colour, Math.min(12, Math.max(8, size / 14)));
}

function drawLabel(context, text, [x, y], colour, size) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 0.8 * size;
  const [left, top] = [Math.max(2, x), Math.max(2, y - 1.5 * size)];
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(left, top, width, 1.4 * size, 0.4 * size);
  context.fill();
  context.fillStyle = "#0b0f14";
  context.fillText(text, left + 0.4 * size, top + 1.05 * size);
}

/** A curve of [seconds, milliseconds] points over the last minute; with an axis where there is room for one. */
export function drawCurve(canvas, points, now, { axis = false, span = 30 } = {}) {
  const { context, width, height } = fit(canvas);
  if (!width) return;
  const style = getComputedStyle(canvas);
  const shown = points.filter(([at]) => now - at <= span);
  const high = niceCeiling(Math.max(20, ...shown.map(([, value]) => value)));
  const [left, bottom] = axis ? [38, 18] : [0, 1];
  const x = (at) => left + (1 - (now - at) / span) * (width - left);
  const y = (value) => height - bottom - (Math.min(value, high) / high) * (height - bottom - (axis ? 6 : 3));
  if (axis) {
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      context.strokeStyle = style.outlineColor;
      context.beginPath();
      context.moveTo(left, y(high * share));
      context.lineTo(width, y(high * share));
      context.stroke();
      context.fillStyle = style.textDecorationColor;
      context.fillText(`${Math.round(high * share)}`, left - 6, y(high * share) + 4);
    }
    context.textAlign = "left";
    context.fillText(`ms, last ${span} s`, left, height - 3);
  }
  if (shown.length < 2) return;
  context.strokeStyle = style.color;
  context.lineWidth = axis ? 1.8 : 1.4;
  context.beginPath();
  shown.forEach(([at, value], index) => context[index ? "lineTo" : "moveTo"](x(at), y(value)));
  context.stroke();
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
