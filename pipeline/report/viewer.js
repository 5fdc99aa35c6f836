// The viewer of one image: its picture in colours, a box drawn on it, and the box's target.

const viewer = document.getElementById("viewer");
const stage = document.getElementById("stage");
const edges = ["x0", "y0", "x1", "y1"].map((name) => document.querySelector(`#box [name=${name}]`));
const WHOLE = [0, 0, 1, 1];
const BARS = 6; // classes of a target
let current = 0; // number of the image
let box = WHOLE;
let outline; // the box on the picture, an SVG rectangle

const isWhole = (edges) => edges.every((edge, i) => edge === WHOLE[i]);
const isBox = ([x0, y0, x1, y1]) => 0 <= x0 && x0 < x1 && x1 <= 1 && 0 <= y0 && y0 < y1 && y1 <= 1;

function openViewer(number, drawn) {
  current = number;
  const image = data.images[number];
  document.getElementById("viewer-key").replaceChildren(element("bdi", {}, image.key));
  document.getElementById("viewer-place").textContent = `${shown.indexOf(number) + 1 || "not"} of ${shown.length}`;
  if (!viewer.open) viewer.showModal();
  drawStage();
  setBox(drawn && drawn.length === 4 && isBox(drawn) ? drawn : WHOLE);
}

function goTo(step) {
  const place = shown.indexOf(current) + step;
  if (place >= 0 && place < shown.length) openViewer(shown[place]);
}

// --- the picture ---------------------------------------------------------------------------------------------------------

function overlaySet() {
  return data.images[current].sets[document.getElementById("overlay-set")?.value ?? 0];
}

function drawStage() {
  const image = data.images[current];
  const picture = cards[current].querySelector("img, .unreadable").cloneNode(true);
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  lines.setAttribute("viewBox", "0 0 1 1");
  lines.setAttribute("preserveAspectRatio", "none");
  (overlaySet()?.boxes ?? []).forEach((region) => lines.append(rectangle("region", region)));
  outline = rectangle("drawn", box);
  lines.append(outline);
  stage.replaceChildren(picture, lines);
  stage.style.aspectRatio = `${image.full[0]} / ${image.full[1]}`;
  stage.style.width = `min(100%, ${Math.min(480, (480 * image.full[0]) / image.full[1])}px)`;
  document.getElementById("overlay").parentElement.hidden = !overlaySet()?.grid;
  if (overlaySet()?.grid && document.getElementById("overlay").checked) picture.after(overlayOf(overlaySet()));
}

function rectangle(kind, [x0, y0, x1, y1]) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  made.setAttribute("class", kind);
  const attributes = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

// --- the box -------------------------------------------------------------------------------------------------------------

// typing: the fields are being written in. drawing: browsers allow few changes of the address while a pointer moves.
function setBox(edgesOfBox, { typing = false, drawing = false } = {}) {
  const rounded = edgesOfBox.map((edge) => Math.round(edge * 1e5) / 1e5);
  const valid = isBox(rounded);
  document.getElementById("box-note").textContent = valid ? "" : "expected x0 < x1 and y0 < y1, from 0 to 1";
  if (!valid) return;
  box = rounded;
  if (!typing) box.forEach((edge, i) => (edges[i].value = edge));
  const drawn = rectangle("drawn", box);
  outline.replaceWith(drawn);
  outline = drawn;
  showTargets();
  if (!drawing) saveState();
}

// Where a pointer is on the picture, in fractions of it.
function position(event) {
  const { left, top, width, height } = stage.getBoundingClientRect();
  const clamp = (value) => Math.min(Math.max(value, 0), 1);
  return [clamp((event.clientX - left) / width), clamp((event.clientY - top) / height)];
}

function startBox(event) {
  if (event.button !== 0 || data.images[current].sets.every((labels) => !labels?.tail)) return;
  const [x, y] = position(event);
  stage.setPointerCapture(event.pointerId);
  const move = (moved) => {
    const [u, v] = position(moved);
    const next = [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
    if (next[2] - next[0] > 0.005 && next[3] - next[1] > 0.005) setBox(next, { drawing: true }); // else it is a click
  };
  const pressed = new AbortController();
  const end = () => (pressed.abort(), saveState());
  Object.entries({ pointermove: move, pointerup: end, pointercancel: end }).forEach(([name, handler]) =>
    stage.addEventListener(name, handler, { signal: pressed.signal }),
  );
}

// --- what the labels say -------------------------------------------------------------------------------------------------

function showTargets() {
  const image = data.images[current];
  const suggestion = image.suggestion === image.given ? "the same" : nameOf(image.suggestion);
  const given = element("p", {}, element("span", { class: "given" }, nameOf(image.given)), " → ", suggestion);
  const parts = image.sets.map((labels, set) => saidBy(labels, image.sets.length > 1 ? `${"AB"[set]}: ` : ""));
  document.getElementById("said").replaceChildren(given, ...parts, numbersOf(image));
}

// What a label set says; its title begins with its mark, if there are two.
function saidBy(labels, mark) {
  if (!labels) return element("section", {}, element("h4", {}, `${mark}no labels of this image`));
  const said = labels.omitted ? tooLarge : labels.grid ? ofMap : ofRegions;
  return element("section", {}, ...said(mark, labels));
}

function numbersOf(image) {
  const rows = data.numbers
    .filter(({ name }) => image.numbers[name] !== null)
    .map(({ name, title, about, range, digits }) => {
      const value = element("dd", {}, written(image.numbers[name], digits));
      return element("div", {}, element("dt", { title: about }, `${title}, ${range}`), value);
    });
  return element("dl", {}, ...rows);
}

// A number without the sign of a zero.
function written(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

function tooLarge(mark, labels) {
  const about = `Its labels take ${(labels.omitted / 1e6).toFixed(1)} MB. The command relabel show draws this image.`;
  return [element("h4", {}, `${mark}not in this page`), element("p", {}, about)];
}

function ofMap(mark, labels) {
  const places = {
    "where the ground-truth label is most probable": labels.labelBox,
    "where the suggestion is": labels.suggestionBox,
  };
  const buttons = Object.entries(places).map(([text, place]) => boxButton(text, place));
  const title = `${mark}target of ${isWhole(box) ? "the whole picture" : "the box"}, probabilities from 0 to 1`;
  return [
    element("h4", {}, title),
    bars(boxTarget(labels, box)),
    element("p", { class: "legend" }, "Share of the cells by their top-1 class:"),
    sharesOf(labels),
    element("p", { class: "buttons" }, ...buttons),
  ];
}

// A region answers for its own box only.
function ofRegions(mark, labels) {
  const overlaps = labels.boxes.map((region) => overlap(region, box));
  const [nearest] = largest(overlaps, 1);
  stage.querySelectorAll(".region").forEach((region, number) => region.classList.toggle("nearest", number === nearest));
  const mirrored = labels.mirrored[nearest] ? " (the classifier saw it mirrored)" : "";
  const about =
    `Regions answer for their own boxes only. Region ${nearest + 1} of ${labels.boxes.length}${mirrored} is nearest to the ` +
    `drawn box: their overlap is ${overlaps[nearest].toFixed(2)} (area in both / area in either, 0 to 1).`;
  const rows = labels.boxes.map((region, number) => {
    const target = regionTarget(labels, number);
    const [top] = largest(target, 1);
    return element("li", {}, boxButton(`region ${number + 1}`, region), " ", nameOf(top), ` ${target[top].toFixed(4)}`);
  });
  return [
    element("h4", {}, `${mark}target of region ${nearest + 1}, probabilities from 0 to 1`),
    bars(regionTarget(labels, nearest)),
    element("p", {}, about),
    element("ul", { class: "regions" }, ...rows),
  ];
}

function boxButton(text, place) {
  const button = element("button", { type: "button" }, text);
  button.addEventListener("click", () => setBox(place));
  return button;
}

function sharesOf(labels) {
  const items = labels.shares.map(([number, share], place) =>
    element("span", { class: `c${place}` }, nameOf(number), ` ${(100 * share).toFixed(1)}%`),
  );
  const others = `${labels.others} other${labels.others > 1 ? "s" : ""}`;
  if (labels.others) items.push(element("span", { class: "rest" }, others));
  return element("p", { class: "shares" }, ...items);
}

// The strongest classes of a target, and the ground-truth label's part in it.
function bars(target) {
  const given = data.images[current].given;
  const classes = largest(target, BARS);
  if (!classes.includes(given)) classes.push(given);
  const rows = classes.map((number) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${100 * target[number]}%`;
    const mark = number === given ? " (ground-truth label)" : "";
    const row = element("li", { "data-class": number }, nameOf(number), mark, element("b", {}, target[number].toFixed(4)), bar);
    row.classList.toggle("given", number === given);
    return row;
  });
  return element("ul", { class: "bars" }, ...rows);
}

// --- start ---------------------------------------------------------------------------------------------------------------

document.documentElement.classList.add("js");
data.images.forEach((image, number) => (image.number = number));
document.querySelectorAll("table.sortable").forEach(makeSortable);
controls.addEventListener("input", () => (showCards(), saveState()));
controls.addEventListener("submit", (event) => event.preventDefault());
controls.addEventListener("reset", () => setTimeout(() => (showCards(), saveState())));
cards.forEach((card, number) => {
  card.querySelector("button").addEventListener("click", () => openViewer(number));
  drawing.observe(card);
});
document.addEventListener("keydown", onKey);
window.addEventListener("beforeprint", () => cards.forEach(drawOverlay));
window.addEventListener("hashchange", loadState);
viewer.addEventListener("close", () => (saveState(), cards[current].querySelector("button").focus()));
viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
viewer.querySelectorAll("[data-go]").forEach((button) => {
  button.addEventListener("click", () => goTo(Number(button.dataset.go)));
});
stage.addEventListener("pointerdown", startBox);
edges.forEach((edge) => {
  const typed = () => edges.map(({ value }) => (value === "" ? NaN : Number(value)));
  edge.addEventListener("input", () => setBox(typed(), { typing: true }));
});
document.getElementById("whole").addEventListener("click", () => setBox(WHOLE));
document.getElementById("crop").addEventListener("click", () => {
  setBox(randomCrop(data.images[current].full, data.cropScale, data.cropRatio));
});
document.querySelectorAll("#overlay, #overlay-set").forEach((input) => {
  input.addEventListener("change", () => (drawStage(), showTargets()));
});
loadState();
