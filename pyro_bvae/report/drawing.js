// From decoded values to a canvas.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const pictureOf = (uri) =>
  new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture of this page cannot be read"));
    image.src = uri;
  });

const drawTile = (canvas, image, sprite, column, row) => {
  const { width, height } = sprite;
  Object.assign(canvas, { width, height });
  const place = [column * width, row * height, width, height];
  canvas.getContext("2d").drawImage(image, ...place, 0, 0, width, height);
};

const drawImage = (canvas, shape, values) => {
  const [channels, height, width] = shape;
  Object.assign(canvas, { width, height });
  const pixels = new ImageData(width, height);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) {
      pixels.data[4 * i + c] = Math.round(255 * values[(channels === 3 ? c : 0) * plane + i]);
    }
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
};

const clear = (canvas, width, height) => {
  Object.assign(canvas, { width: 2 * width, height: 2 * height });
  const pen = canvas.getContext("2d");
  pen.scale(2, 2);
  pen.font = "12px system-ui, sans-serif";
  return pen;
};

/** A point and the ellipse of one standard deviation, over what the prior decodes to. */
const drawPoint = (canvas, data, { mean, sd }) => {
  const side = 320;
  const pen = clear(canvas, side, side);
  const span = 1.1 * Math.max(data.high[0] - data.low[0], data.high[1] - data.low[1]);
  const unit = side / span;
  const x = (v) => side / 2 + (v - (data.low[0] + data.high[0]) / 2) * unit;
  const y = (v) => side / 2 - (v - (data.low[1] + data.high[1]) / 2) * unit;
  const dot = (p, r) => {
    pen.beginPath();
    pen.arc(x(p[0]), y(p[1]), r, 0, 7);
    pen.fill();
  };
  pen.fillStyle = colour("--faint");
  data.cloud.forEach((p) => dot(p, 2));
  pen.fillStyle = colour("--ink");
  data.x.forEach((p) => dot(p, 2.5));
  pen.fillStyle = pen.strokeStyle = colour("--accent");
  pen.lineWidth = 2;
  dot(mean, 5);
  if (!sd) return;
  pen.beginPath();
  pen.ellipse(x(mean[0]), y(mean[1]), sd[0] * unit, sd[1] * unit, 0, 0, 7);
  pen.stroke();
};

/** The decoded values side by side, one standard deviation about them, and the example's. */
const drawVector = (canvas, data, { mean, sd }, example) => {
  const [width, height] = [480, 220];
  const pen = clear(canvas, width, height);
  const low = Math.min(0, ...data.low);
  const high = Math.max(0, ...data.high);
  const y = (v) => height - 8 - ((v - low) / (high - low || 1)) * (height - 16);
  const step = width / mean.length;
  const bar = (i, from, to, part) => {
    const thick = Math.max(1, step * part);
    pen.fillRect((i + 0.5) * step - thick / 2, Math.min(y(from), y(to)), thick, Math.abs(y(to) - y(from)));
  };
  for (let i = 0; i < mean.length; i++) {
    pen.fillStyle = colour("--accent");
    bar(i, 0, mean[i], 0.7);
    pen.fillStyle = colour("--ink");
    if (sd) bar(i, mean[i] - sd[i], mean[i] + sd[i], 0.08);
    if (example) pen.fillRect(i * step, y(example[i]) - 1, step * 0.99, 2);
  }
  pen.fillStyle = colour("--line");
  pen.fillRect(0, y(0), width, 1);
};

const CAPTIONS = {
  image: "decoded",
  points: "blue: the decoded point, ringed by one standard deviation; faint: draws of the prior, decoded; strong: held-out examples",
  vector: "bars: the decoded values; thin lines: one standard deviation; dashes: the held-out example",
};
