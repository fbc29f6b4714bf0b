// The decoder, from the operations and weights that decoder.py exports. The parts of this page's script
// are joined in one block.

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

const inflate = async (bytes) => {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

/** 16-bit floats, all high bytes before all low bytes. */
const floatsOf = (planes) => {
  const n = planes.length / 2;
  const out = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    const high = planes[i];
    const exponent = (high >> 2) & 31;
    const fraction = ((high & 3) << 8) | planes[n + i];
    const size = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
    out[i] = high & 128 ? -size : size;
  }
  return out;
};

const linear = (op, x, weight, bias) => {
  const out = Float32Array.from(bias);
  for (let o = 0, k = 0; o < out.length; o++) {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += weight[k++] * x[i];
    out[o] += sum;
  }
  return out;
};

const affine = (op, x, scale, shift) => {
  const plane = x.length / op.in[0];
  return x.map((v, i) => v * scale[Math.floor(i / plane)] + shift[Math.floor(i / plane)]);
};

/**
 * For a convolution and its transpose: `each` gets every coarse position, and where the weights
 * about it lie on the fine side, fine = coarse * stride - padding + offset, -1 if outside. So the
 * long inner loops run over weights that lie side by side.
 */
const patches = (op, coarse, fine, each) => {
  const [kh, kw] = op.kernel_size;
  const channels = fine[0];
  const places = new Int32Array(channels * kh * kw); // of the patch, on the fine side; -1 outside
  for (let row = 0; row < coarse[1]; row++) {
    for (let column = 0; column < coarse[2]; column++) {
      for (let c = 0, k = 0; c < channels; c++) {
        for (let a = 0; a < kh; a++) {
          const y = row * op.stride[0] - op.padding[0] + a;
          for (let b = 0; b < kw; b++, k++) {
            const x = column * op.stride[1] - op.padding[1] + b;
            const inside = y >= 0 && y < fine[1] && x >= 0 && x < fine[2];
            places[k] = inside ? (c * fine[1] + y) * fine[2] + x : -1;
          }
        }
      }
      each(row * coarse[2] + column, places);
    }
  }
};

const filled = (bias, [channels, height, width]) => {
  const out = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) out.fill(bias[c], c * height * width, (c + 1) * height * width);
  return out;
};

const conv = (op, x, weight, bias) => {
  const out = filled(bias, op.out);
  const plane = op.out[1] * op.out[2];
  const patch = new Float32Array(weight.length / op.out[0]);
  patches(op, op.out, op.in, (position, places) => {
    for (let k = 0; k < patch.length; k++) patch[k] = places[k] < 0 ? 0 : x[places[k]];
    for (let o = 0, w = 0; o < op.out[0]; o++) {
      let sum = 0;
      for (let k = 0; k < patch.length; k++) sum += weight[w++] * patch[k];
      out[o * plane + position] += sum;
    }
  });
  return out;
};

const convTranspose = (op, x, weight, bias) => {
  const out = filled(bias, op.out);
  const plane = op.in[1] * op.in[2];
  const patch = new Float32Array(weight.length / op.in[0]);
  patches(op, op.in, op.out, (position, places) => {
    patch.fill(0);
    for (let i = 0; i < op.in[0]; i++) {
      const v = x[i * plane + position];
      if (v === 0) continue; // as half of them are behind a ReLU
      for (let k = 0, w = i * patch.length; k < patch.length; k++) patch[k] += v * weight[w++];
    }
    for (let k = 0; k < patch.length; k++) if (places[k] >= 0) out[places[k]] += patch[k];
  });
  return out;
};

const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
const WITH_WEIGHTS = { linear, affine, conv, conv_transpose: convTranspose };
const POINTWISE = {
  leaky_relu: (op) => (v) => (v > 0 ? v : op.slope * v),
  elu: (op) => (v) => (v > 0 ? v : op.alpha * Math.expm1(v)),
  sigmoid: () => sigmoid,
  tanh: () => Math.tanh,
  softplus: (op) => (v) => softplus(op.beta * v) / op.beta,
};
const MEANS = {
  identity: (v) => v,
  sigmoid,
  continuous_bernoulli: (logit) => {
    const near = 0.5 + logit / 12 - logit ** 3 / 720; // else the difference cancels
    return Math.abs(logit) < 0.05 ? near : 1 / (1 - Math.exp(-logit)) - 1 / logit;
  },
};

/** The function (z, label) => {mean, sd} of p(x|z); sd is null where x is a picture. */
const decoderOf = (description, weights, classes) => (z, label) => {
  let start = 0;
  const take = (n) => weights.subarray(start, (start += n));
  let x = Float32Array.from([...z, ...Array.from({ length: classes }, (_, k) => +(k === label))]);
  for (const op of description.ops) {
    const run = WITH_WEIGHTS[op.op];
    if (run) {
      const channels = (op.out || op.in)[0];
      const area = op.kernel_size ? op.kernel_size[0] * op.kernel_size[1] : 1;
      const size = op.op === "affine" ? channels : channels * op.in[0] * area;
      x = run(op, x, take(size), take(channels));
    } else {
      x = x.map(POINTWISE[op.op](op));
    }
  }
  const { mean, size, sd, floor, factor } = description.head;
  const means = x.subarray(0, size).map(MEANS[mean]);
  if (sd !== "decoder") return { mean: means, sd: sd === null ? null : means.map(() => sd) };
  return { mean: means, sd: x.slice(size).map((v) => factor * Math.max(floor, softplus(v))) };
};
