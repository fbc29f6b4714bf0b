// The walk through the latent space: starts, sliders, the choice of a run.

const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

let current = null; // of the run shown: {run, data, decode, z, label, example, tile}
let loading = Promise.resolve();
let waiting = 0;
const stage = find("#traversal");
const choice = find("#choose-run"); // null where there is one run

const show = () => {
  if (!current) return;
  const { data, z, label, decode, example, canvas, original, tile } = current;
  canvas.setAttribute("aria-label", `What the decoder makes of z = ${[...z].map((v) => v.toFixed(2)).slice(0, 12)}`);
  if (tile && data.kind === "image") {
    drawTile(canvas, current.sheets[tile.start], data.strips.pictures[tile.start], tile.column, tile.row);
  } else {
    const { row, column, start } = tile || {};
    const out = tile ? { mean: data.strips.pictures[start][row][column], sd: null } : decode(z, label);
    const x = example === null ? null : data.x && data.x[example];
    if (data.kind === "image") drawImage(canvas, data.shape, out.mean);
    else if (data.kind === "points") drawPoint(canvas, data, out);
    else drawVector(canvas, data, out, x);
  }
  if (!original) return;
  original.parentElement.hidden = example === null;
  if (example !== null) drawTile(original, current.sprite, data.sprite, example, 0);
};

const redraw = () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(show);
};

const nearest = (values, v) =>
  values.reduce((best, w, i) => (Math.abs(w - v) < Math.abs(values[best] - v) ? i : best), 0);

/** Sliders and numbers follow z. */
const follow = () => {
  for (const { slider, output, index, values } of current.sliders) {
    slider.value = values ? nearest(values, current.z[index]) : current.z[index];
    output.textContent = current.z[index].toFixed(2);
    slider.setAttribute("aria-valuetext", output.textContent);
  }
  redraw();
};

const startAt = (z, { example = null, label = null } = {}, button = null) => {
  Object.assign(current, { z: Float64Array.from(z), example });
  if (label !== null) current.label = label;
  if (current.classes) current.classes.value = current.label;
  all("button[aria-pressed]", stage).forEach((b) => b.setAttribute("aria-pressed", b === button));
  follow();
};

const button = (text, act) => {
  const made = make("button", { type: "button" }, text);
  made.setAttribute("aria-pressed", "false");
  made.addEventListener("click", () => act(made));
  return made;
};

const classOf = (label) => current.data.class_names[label] ?? `class ${label}`;

const exampleButton = (i) => {
  const { data, sprite } = current;
  const label = data.labels ? data.labels[i] : null;
  const made = button("", (b) => startAt(data.examples[i], { example: i, label }, b));
  made.setAttribute("aria-label", `example ${i + 1}` + (label === null ? "" : `, ${classOf(label)}`));
  if (!sprite) made.append(`${i + 1}`);
  else {
    const thumb = make("canvas");
    drawTile(thumb, sprite, data.sprite, i, 0);
    made.append(thumb);
  }
  return made;
};

const starts = () => {
  const { data } = current;
  const zero = data.centre.every((v) => v === 0);
  const buttons = [
    button(zero ? "0, the prior's mean" : "the prior's mean", (b) => startAt(data.centre, {}, b)),
    button("a random draw of the prior", (b) =>
      startAt(data.draws[Math.floor(Math.random() * data.draws.length)], {}, b)),
  ];
  const examples = data.examples.map((_, i) => exampleButton(i));
  const box = make("div", { className: "starts" }, ...buttons);
  if (examples.length) {
    box.append(make("span", { className: "hint" }, "or the code of a held-out example:"));
    box.append(make("span", { className: "examples" }, ...examples));
  }
  return [box, examples[0] || buttons[0]];
};

const classChoice = () => {
  const names = Array.from({ length: current.data.classes }, (_, k) => new Option(current.data.class_names[k] ?? k, k));
  const select = make("select", { id: "class" }, ...names);
  select.addEventListener("change", () => {
    current.label = Number(select.value);
    redraw();
  });
  current.classes = select;
  return make("p", {}, make("label", { htmlFor: "class" }, "class shown to the decoder "), select);
};

/** A labelled slider; `moved` gets its number. */
const sliderRow = (latent, limits, moved) => {
  const id = `z${latent.index}`;
  const slider = make("input", { type: "range", id, ...limits });
  const output = make("output", { htmlFor: id });
  slider.addEventListener("input", () => moved(Number(slider.value)));
  current.sliders.push({ slider, output, index: latent.index });
  const name = make("label", { htmlFor: id }, id);
  if (latent.note) name.append(make("small", {}, ` ${latent.note}`));
  return make("div", { className: "slider" }, name, slider, output);
};

const liveSliders = () =>
  current.data.latents.map((latent) => {
    const { index, low, high } = latent;
    const step = high - low < 20 ? 0.05 : (high - low) / 200;
    return sliderRow(latent, { min: low, max: high, step }, (value) => {
      current.z[index] = value;
      follow();
    });
  });

// Pictures made beforehand: one latent moves, the others stay at the start. The last row of
// each sheet is the start itself.
const stripSliders = () => {
  const { strips, latents } = current.data;
  return strips.values.map((values, row) => {
    const limits = { min: 0, max: values.length - 1, step: 1 };
    const made = sliderRow(latents[row], limits, (column) => {
      current.tile = { start: current.tile.start, row, column };
      current.z = Float64Array.from(strips.starts[current.tile.start]);
      current.z[latents[row].index] = values[column];
      follow();
    });
    current.sliders[row].values = values;
    return made;
  });
};

const stripStarts = () => {
  const { strips, examples } = current.data;
  const buttons = strips.names.map((name, start) => {
    const label = strips.labels[start];
    const text = label === null ? name : `${name}, ${classOf(label)}`;
    return button(text, (b) => {
      current.tile = { start, row: strips.values.length, column: 0 };
      startAt(strips.starts[start], { example: examples.length ? start : null }, b);
    });
  });
  return [make("div", { className: "starts" }, ...buttons), buttons[0]];
};

const build = () => {
  const { data } = current;
  current.canvas = make("canvas", { className: data.kind });
  current.canvas.setAttribute("role", "img");
  const pair = make("div", { className: "pair" }, make("figure", {}, current.canvas, make("figcaption", {}, CAPTIONS[data.kind])));
  if (data.sprite) {
    current.original = make("canvas", { className: "image" });
    current.original.setAttribute("role", "img");
    current.original.setAttribute("aria-label", "the example itself");
    pair.append(make("figure", {}, current.original, make("figcaption", {}, "original")));
  }
  const [starting, first] = data.strips ? stripStarts() : starts();
  const rows = data.strips ? stripSliders() : liveSliders();
  const controls = make("div", { className: "controls" }, make("h4", {}, "Start from"), starting);
  if (data.classes && !data.strips) controls.append(classChoice());
  controls.append(make("h4", {}, "Latents"), make("div", { className: "sliders" }, ...rows.slice(0, 12)));
  if (rows.length > 12) {
    const rest = make("div", { className: "sliders" }, ...rows.slice(12));
    controls.append(make("details", {}, make("summary", {}, `${rows.length - 12} more latents`), rest));
  }
  stage.replaceChildren(make("p", {}, data.how), make("div", { className: "stage" }, pair, controls));
  first.click();
  show();
};

const load = async (run) => {
  const data = JSON.parse(find(`#run-${run}`).textContent);
  const next = { run, data, label: data.classes ? 0 : null, sliders: [], example: null, tile: null };
  current = null;
  if (!data.latents) {
    stage.replaceChildren(make("p", {}, data.how));
    return;
  }
  stage.replaceChildren(make("p", {}, "Unpacking the decoder …"));
  try {
    if (data.decoder) {
      const weights = floatsOf(await inflate(bytesOf(data.decoder.weights)));
      next.decode = decoderOf(data.decoder, weights, data.classes);
    }
    if (data.sprite) next.sprite = await pictureOf(data.sprite.uri);
    if (data.strips && data.kind === "image") {
      next.sheets = await Promise.all(data.strips.pictures.map((sheet) => pictureOf(sheet.uri)));
    }
  } catch (error) {
    stage.replaceChildren(make("p", {}, `This browser cannot unpack the decoder (${error.message}): try a newer one.`));
    return;
  }
  current = next;
  build();
};

const select = (run) => {
  if (choice) choice.value = run;
  all("[data-pictures]").forEach((box) => (box.hidden = Number(box.dataset.pictures) !== run));
  loading = loading.then(() => load(run));
  return loading;
};

if (choice) choice.addEventListener("change", () => select(Number(choice.value)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.pyroBvae = {
  select,
  ready: () => loading,
  decode: (z, label) => current.decode(z, label),
  state: () => ({ run: current.run, z: [...current.z], label: current.label, example: current.example }),
};
select(choice ? Number(choice.value) : 0);
