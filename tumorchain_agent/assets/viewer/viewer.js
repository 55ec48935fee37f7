// The answer beside its scan. Everything shown is set as text, never as HTML; nothing is fetched from elsewhere.
import { Niivue, SHOW_RENDER, SLICE_TYPE } from "./niivue.min.js";

const WINDOWS = { "Soft tissue": [40, 400], Liver: [60, 160], Lung: [-600, 1500], Bone: [400, 1800] };
const LAYOUTS = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
const PLANES = [
  { sliceType: SLICE_TYPE.AXIAL, position: [0, 0, 0.62, 1] },
  { sliceType: SLICE_TYPE.CORONAL, position: [0.62, 0, 0.38, 0.5] },
  { sliceType: SLICE_TYPE.SAGITTAL, position: [0.62, 0.5, 0.38, 0.5] },
];
const LABEL_INTENT = 1002;
const FILL = 0.2;

const $ = (id) => document.getElementById(id);
const state = { data: null, organs: new Map(), viewer: null, labels: null, stored: null, chosen: null };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function chip(name) {
  const organ = state.organs.get(name);
  if (!organ.centre) return element("span", { class: "chip absent" }, `${organ.title}: ${organ.absence}`);
  const dot = element("i");
  dot.style.setProperty("--dot", `rgb(${organ.rgb})`);
  const facts = organ.facts ? ` ${organ.facts}` : "";
  const button = element("button", { type: "button", class: "chip", "aria-pressed": "false", "data-organ": name }, dot);
  button.append(organ.title, element("small", {}, facts));
  button.addEventListener("click", () => show(name));
  return button;
}

function chips(names) {
  return element("div", { class: "chips" }, ...names.map(chip));
}

function parts(sections) {
  return sections.flatMap(({ title, text }) => [
    ...(title ? [element("h3", { class: "part" }, title)] : []),
    element("p", {}, text),
  ]);
}

function claim(item, index) {
  const target = item.organs.find((name) => state.organs.get(name)?.centre);
  const rests = item.organs.map((name) => state.organs.get(name)?.title ?? name).join(", ");
  const note = target ? `shows ${state.organs.get(target).title}` : rests ? `${rests}: nothing to show` : "names no organ";
  const button = element(
    "button",
    { type: "button", class: "claim", id: `claim-${index + 1}`, disabled: !target, "aria-pressed": "false" },
    item.sentence,
    element("small", {}, note),
  );
  button.addEventListener("click", () => {
    show(target);
    for (const other of document.querySelectorAll(".claim")) other.setAttribute("aria-pressed", other === button);
  });
  return element("li", {}, button);
}

function round(item) {
  const made = element("details", { class: "card", open: item.index > 1 });
  made.append(element("summary", {}, `Round ${item.index}: ${item.title}`), ...parts(item.sections));
  if (item.organs.length) made.append(element("small", {}, "shown to the model"), chips(item.organs));
  if (item.next.length) made.append(element("small", {}, `asked for next: ${item.next.join(", ")}`));
  return made;
}

function fill(data) {
  $("disclaimer").textContent = data.disclaimer;
  $("question").textContent = data.question;
  $("scan").textContent = data.scan;
  $("origin").textContent = data.origin;
  if (data.warnings.length) {
    const list = element("details", { class: "warning", open: data.warnings.length < 3 });
    list.append(element("summary", {}, `${data.warnings.length} things to know before trusting this`));
    list.append(...data.warnings.map((text) => element("p", {}, text)));
    $("warnings").append(list);
  }
  const answer = element("div", { class: "card" }, ...parts(data.sections));
  answer.append(element("div", { class: "tnm" }, ...data.tnm.map((text) => element("span", {}, text))));
  $("answer").append(answer);
  $("claims").append(...data.claims.map(claim));
  $("rounds").append(...data.rounds.map(round));
  $("organs").append(...data.organs.filter(({ centre }) => centre).map(({ name }) => element("li", {}, chip(name))));
}

function colours(data) {
  const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  for (let id = 0; id <= data.largestId; id++) {
    const [red, green, blue] = data.structures[id]?.rgb ?? [0, 0, 0];
    table.R.push(red); table.G.push(green); table.B.push(blue);
    table.A.push(id ? 255 : 0); table.I.push(id); table.labels.push("");
  }
  return table;
}

// What isn't shown becomes background, so that it has no outline either.
function paint(name) {
  if (!state.labels) return;
  const { structures, anyExamined } = state.data;
  const kept = new Uint8Array(256);
  for (const [id, { organ, examined }] of Object.entries(structures)) {
    if (name ? organ === name : examined || !anyExamined) kept[id] = id;
  }
  const { img } = state.labels;
  for (let index = 0; index < img.length; index++) img[index] = kept[state.stored[index]];
  state.labels.opacity = $("overlay").checked ? FILL : 0;
  state.viewer.setAtlasOutline($("overlay").checked ? 1 : 0);
  state.viewer.updateGLVolume();
}

function show(name) {
  const organ = state.organs.get(name);
  state.chosen = name;
  for (const button of document.querySelectorAll(".chip[data-organ]")) {
    button.setAttribute("aria-pressed", button.dataset.organ === name);
  }
  for (const button of document.querySelectorAll(".claim")) button.setAttribute("aria-pressed", "false");
  paint(name);
  state.viewer.scene.crosshairPos = state.viewer.mm2frac(organ.centre);
  state.viewer.createOnLocationChange();
  state.viewer.drawScene();
  document.body.dataset.organ = name;
}

function located({ mm, values }) {
  const [x, y, z] = Array.from(mm).slice(0, 3).map((value) => Math.round(value * 10) / 10);
  const hu = values?.length ? `, ${Math.round(values[0].value)} HU` : "";
  $("where").textContent = `x ${x}, y ${y}, z ${z} mm${hu}`;
  document.body.dataset.crosshair = [x, y, z].join(" ");
}

function arrange(layout) {
  if (layout in LAYOUTS) {
    state.viewer.clearCustomLayout();
    state.viewer.setSliceType(LAYOUTS[layout]);
  } else {
    state.viewer.setCustomLayout(PLANES);
  }
}

function controls() {
  for (const name of Object.keys(WINDOWS)) $("window").append(element("option", {}, name));
  $("window").addEventListener("change", () => {
    const [level, width] = WINDOWS[$("window").value];
    Object.assign(state.viewer.volumes[0], { cal_min: level - width / 2, cal_max: level + width / 2 });
    state.viewer.updateGLVolume();
  });
  $("layout").addEventListener("change", () => arrange($("layout").value));
  $("overlay").addEventListener("change", () => paint(state.chosen));
  $("all").addEventListener("click", () => {
    state.chosen = null;
    delete document.body.dataset.organ;
    for (const button of document.querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", "false");
    paint(null);
  });
}

async function load() {
  const [level, width] = WINDOWS["Soft tissue"];
  const viewer = new Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [0.49, 0.77, 0.93, 0.8], crosshairWidth: 0.2, crosshairWidthUnit: "percent", crosshairGap: 6,
    isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, isNearestInterpolation: false,
    multiplanarShowRender: SHOW_RENDER.NEVER, logLevel: "error", loadingText: "",
  });
  state.viewer = viewer;
  viewer.onLocationChange = located;
  await viewer.attachToCanvas($("ct"));
  const files = [{ url: "scan.nii.gz", colormap: "gray", cal_min: level - width / 2, cal_max: level + width / 2 }];
  if (state.data.labels) files.push({ url: state.data.labels, opacity: FILL });
  await viewer.loadVolumes(files);
  arrange("multi");
  state.labels = viewer.volumes[1] ?? null;
  if (state.labels) {
    state.labels.hdr.intent_code = LABEL_INTENT;
    state.labels.setColormapLabel(colours(state.data));
    state.stored = state.labels.img.slice();
  }
  paint(null);
}

async function start() {
  const answer = await fetch("data.json");
  if (!answer.ok) throw new Error(`the answer can't be read (${answer.status})`);
  state.data = await answer.json();
  state.organs = new Map(state.data.organs.map((organ) => [organ.name, organ]));
  fill(state.data);
  controls();
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("this browser has no WebGL 2, which drawing the scan needs; try another browser");
  }
  await load();
  $("status").textContent = "";
  document.body.dataset.state = "ready";
  document.getElementById(location.hash.slice(1))?.click();
}

start().catch((problem) => {
  $("status").textContent = `The scan can't be shown: ${problem.message}`;
  document.body.dataset.state = "failed";
});
