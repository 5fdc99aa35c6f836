// The cards: which are shown and in which order, the state in the page's address, keys, and sorting of tables.

const controls = document.getElementById("controls");
const cardsBox = document.getElementById("cards");
const ordered = [...cardsBox.children].map((card) => Number(card.dataset.image)); // numbers of the images, as on paper
const cards = ordered.map((_, number) => cardsBox.querySelector(`[data-image="${number}"]`));
const FIELDS = ["list", "sort", "class", "suggestion", "search"];
const ascending = Object.fromEntries(data.numbers.map((number) => [number.name, number.ascending]));
let shown = []; // numbers of the images in the order of their cards

// An element with attributes and children. Names are text, never HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.append(...children);
  return made;
}

function nameOf(number) {
  const name = data.names[number] ?? `class ${number}`;
  return element("bdi", { class: "name", title: name }, name);
}

function colour(place) {
  return getComputedStyle(document.documentElement).getPropertyValue(place < 0 ? "--others" : `--c${place}`);
}

// The top-1 class of every cell, a pixel each, in the colours of the image's list of shares.
function overlayOf(labels) {
  const [rows, columns] = labels.grid;
  const canvas = element("canvas", { class: "overlay", width: columns, height: rows });
  const context = canvas.getContext("2d");
  const places = new Map(labels.shares.map(([number], place) => [number, place]));
  decoded(labels).classes.subarray(0, rows * columns).forEach((number, cell) => {
    context.fillStyle = colour(places.get(number) ?? -1);
    context.fillRect(cell % columns, Math.floor(cell / columns), 1, 1);
  });
  return canvas;
}

// --- which cards, and in which order -------------------------------------------------------------------------------------

function matches(image) {
  const { list, search, suggestion, class: label } = Object.fromEntries(new FormData(controls));
  return (
    (!list || data.lists[list].includes(image.number)) &&
    (!label || image.given === Number(label)) &&
    (!suggestion || image.suggestion === Number(suggestion)) &&
    image.key.toLowerCase().includes(search.toLowerCase())
  );
}

function compare(sort, list) {
  if (sort === "key") return (a, b) => (a.key < b.key ? -1 : 1);
  if (sort) {
    const sign = ascending[sort] ? 1 : -1;
    const value = (image) => (image.numbers[sort] === null ? Infinity : sign * image.numbers[sort]); // those without one last
    return (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a.number - b.number);
  }
  if (list) return (a, b) => data.lists[list].indexOf(a.number) - data.lists[list].indexOf(b.number);
  return (a, b) => ordered.indexOf(a.number) - ordered.indexOf(b.number);
}

function showCards() {
  const found = data.images.filter(matches).sort(compare(controls.sort.value, controls.list.value));
  shown = found.map((image) => image.number);
  cards.forEach((card) => (card.hidden = true));
  shown.forEach((number) => (cards[number].hidden = false));
  cardsBox.append(...shown.map((number) => cards[number]));
  const title = controls.list.value && controls.list.selectedOptions[0].textContent.replace(/ \(.*/, "");
  const of = title ? ` in “${title}”, of ${data.totals[controls.list.value].toLocaleString("en")} in the set` : "";
  document.getElementById("found").textContent = `${shown.length} of ${data.images.length} images on this page${of}`;
  document.documentElement.classList.toggle("overlays", controls.overlay.checked);
}

// Draw the colours of a card, once: when it comes near the window, or all before printing. Two sets stand side by side.
function drawOverlay(card) {
  if (card.querySelector("canvas")) return;
  const picture = card.querySelector(".picture > span");
  data.images[card.dataset.image].sets.forEach((labels, set) => {
    if (!labels?.grid) return;
    const half = set ? picture.cloneNode(true) : picture;
    half.querySelector("canvas")?.remove();
    half.append(overlayOf(labels));
    if (set) picture.after(half);
  });
}

const drawing = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawOverlay(entry.target)),
  { rootMargin: "400px" },
);

// --- the state in the address --------------------------------------------------------------------------------------------

function saveState() {
  const state = new URLSearchParams();
  FIELDS.forEach((name) => controls[name].value && state.set(name, controls[name].value));
  if (!controls.overlay.checked) state.set("overlay", "off");
  if (viewer.open) {
    state.set("image", data.images[current].key);
    if (!isWhole(box)) state.set("box", box.join(","));
  }
  history.replaceState(null, "", `#${state}`);
}

function loadState() {
  const hash = location.hash.slice(1);
  if (hash && !hash.includes("=")) return; // a part of the page
  const state = new URLSearchParams(hash);
  FIELDS.forEach((name) => (controls[name].value = state.get(name) ?? ""));
  controls.overlay.checked = state.get("overlay") !== "off";
  showCards();
  const image = data.images.findIndex(({ key }) => key === state.get("image"));
  if (image >= 0) {
    openViewer(image, state.get("box")?.split(",").map(Number));
  } else {
    if (viewer.open) viewer.close();
    if (hash) controls.scrollIntoView();
  }
}

// --- keys ----------------------------------------------------------------------------------------------------------------

function focusCard(step) {
  const place = shown.indexOf(Number(document.activeElement.closest(".card")?.dataset.image ?? -1));
  const next = place < 0 ? 0 : Math.min(Math.max(place + step, 0), shown.length - 1);
  cards[shown[next]]?.querySelector("button").focus();
}

function cardsInARow() {
  const tops = shown.map((number) => cards[number].offsetTop);
  return Math.max(1, tops.filter((top) => top === tops[0]).length);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, .tall")) return;
  const onCard = event.target.closest(".card") !== null;
  const steps = { j: 1, k: -1 };
  if (onCard || viewer.open) Object.assign(steps, { ArrowRight: 1, ArrowLeft: -1 });
  if (onCard) Object.assign(steps, { ArrowDown: cardsInARow(), ArrowUp: -cardsInARow() });
  if (event.key in steps) {
    if (viewer.open) goTo(steps[event.key]);
    else focusCard(steps[event.key]);
  } else if (event.key === "/" && !viewer.open) {
    controls.search.focus();
  } else {
    return;
  }
  event.preventDefault();
}

// --- tables that sort by a column ----------------------------------------------------------------------------------------

function sortTable(table, column, button) {
  const down = button.getAttribute("aria-sort") === "descending" ? 1 : -1;
  const value = (row) => {
    const text = row.cells[column].textContent;
    const number = parseFloat(text.replaceAll(",", ""));
    return row.cells[column].matches(".number") ? number : text;
  };
  const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => (a < b ? -down : a > b ? down : 0));
  table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
  button.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = element("button", { type: "button" }, ...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => sortTable(table, column, cell));
  });
}
