"use strict";
// Stored labels, and the target of a box: the arithmetic of relabel/labels/pooling.py, in float64.
// Shapes: k classes stored per cell or region, H rows and W columns of a label map, N regions, C classes.

const data = JSON.parse(document.getElementById("data").textContent);

function viewOf(base64) {
  return new DataView(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
}

function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function floats(base64) {
  const view = viewOf(base64);
  return Float64Array.from({ length: view.byteLength / 2 }, (_, i) => float16(view.getUint16(2 * i, true)));
}

function integers(base64) {
  const view = viewOf(base64);
  const read = (i) => (data.classBytes === 2 ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true));
  return Uint32Array.from({ length: view.byteLength / data.classBytes }, (_, i) => read(i));
}

// The labels' arrays, decoded on first use: scores and classes of k * H * W (or N * k) numbers, tail of H * W (or N).
function decoded(labels) {
  labels.arrays ??= { scores: floats(labels.scores), classes: integers(labels.classes), tail: floats(labels.tail) };
  return labels.arrays;
}

// The weight of each cell along one axis for a box from start to stop: RoIAlign's, whose number of points is computed in
// float32, as torchvision does.
function cellWeights(start, stop, cells) {
  const f = Math.fround;
  const first = f(f(f(start) * cells) - 0.5);
  const length = f(f(f(f(stop) * cells) - 0.5) - first);
  const points = Math.max(1, Math.ceil(length));
  const weights = new Float64Array(cells);
  for (let p = 0; p < points; p++) {
    const position = Math.min(Math.max(first + ((p + 0.5) * length) / points, 0), cells - 1);
    const cell = Math.floor(position);
    weights[cell] += (1 - (position - cell)) / points;
    if (cell + 1 < cells) weights[cell + 1] += (position - cell) / points;
  }
  return weights;
}

// C probabilities of a box [x0, y0, x1, y1], in fractions of the picture: label_pool(...).softmax
function boxTarget(labels, [x0, y0, x1, y1]) {
  const { scores, classes, tail } = decoded(labels);
  const [rows, columns] = labels.grid;
  const byRow = cellWeights(y0, y1, rows);
  const byColumn = cellWeights(x0, x1, columns);
  const weight = tail.map((_, cell) => byRow[Math.floor(cell / columns)] * byColumn[cell % columns]);
  const logits = new Float64Array(data.numClasses).fill(tail.reduce((sum, value, cell) => sum + weight[cell] * value, 0));
  classes.forEach((number, i) => {
    const cell = i % tail.length;
    logits[number] += weight[cell] * (scores[i] - tail[cell]);
  });
  return softmax(logits);
}

// C probabilities of a stored region.
function regionTarget(labels, region) {
  const { scores, classes, tail } = decoded(labels);
  const logits = new Float64Array(data.numClasses).fill(tail[region]);
  for (let i = region * labels.k; i < (region + 1) * labels.k; i++) logits[classes[i]] = scores[i];
  return softmax(logits);
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = logits.map((logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}

// The numbers of the largest values, largest first.
function largest(values, count) {
  const found = [];
  values.forEach((value, number) => {
    if (found.length === count && value <= values[found[count - 1]]) return;
    found.push(number);
    found.sort((a, b) => values[b] - values[a]);
    found.length = Math.min(found.length, count);
  });
  return found;
}

// How much two boxes overlap: the area in both by the area in either, 0 to 1.
function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const both = Math.max(width, 0) * Math.max(height, 0);
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return both / (area(a) + area(b) - both);
}

// A box as training draws it: torchvision's RandomResizedCrop of a picture of width x height pixels.
function randomCrop([width, height], scale, ratio) {
  const uniform = (low, high) => low + Math.random() * (high - low);
  const asBox = (left, top, w, h) => [left / width, top / height, (left + w) / width, (top + h) / height];
  for (let attempt = 0; attempt < 10; attempt++) {
    const area = width * height * uniform(...scale);
    const aspect = Math.exp(uniform(Math.log(ratio[0]), Math.log(ratio[1])));
    const w = Math.round(Math.sqrt(area * aspect));
    const h = Math.round(Math.sqrt(area / aspect));
    if (w > 0 && w <= width && h > 0 && h <= height) {
      return asBox(Math.floor(uniform(0, width - w + 1)), Math.floor(uniform(0, height - h + 1)), w, h);
    }
  }
  const aspect = width / height; // no attempt fitted: the centre, as far as the ratio allows
  const w = aspect > ratio[1] ? Math.round(height * ratio[1]) : width;
  const h = aspect < ratio[0] ? Math.round(width / ratio[0]) : height;
  return asBox(Math.floor((width - w) / 2), Math.floor((height - h) / 2), w, h);
}
