"use strict";
const element = id => document.getElementById(id);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const rgb = hex => [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16));
const mix = (from, to, part) => from.map((value, n) => value + (to[n] - value) * part);
const CONFIG = { displayModeBar: false, scrollZoom: false, responsive: true }; // scrolling is for the page
const AXES = ["y", "x", "z"], SHADES = [0.8, 0.62, 1]; // the brightness of faces across them
const SQUARE = [[0, 0], [0, 1], [1, 1], [1, 0]];
const WIDTH = 1.17; // of a scene, in the units of its camera

// ---------------------------------------------------------------- bytes

function bytes(text) {
  const letters = atob(text), held = new Uint8Array(letters.length);
  for (let n = 0; n < held.length; n++) held[n] = letters.charCodeAt(n);
  return held;
}

async function inflated(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The probability that a byte stands for; see `coded` of template.py.
const decoded = (code, threshold) =>
  code < 128 ? code / 127 * threshold : threshold + (code - 128) / 127 * (1 - threshold);

// ---------------------------------------------------------------- volumes

// Mesh of those faces of the voxels [y, x, z] of kind 1, 2, ... behind which there is nothing; those of one kind
// in a plane are joined to rectangles. Null if it takes more than `most` of them.
function faces(kinds, shape, colours, { voxel = PAGE.voxel_nm, most = Infinity } = {}) {
  const strides = [shape[1] * shape[2], shape[2], 1];
  const mesh = { x: [], y: [], z: [], i: [], j: [], k: [], facecolor: [] };
  for (let axis = 0; axis < 3; axis++) for (const side of [0, 1]) {
    const [u, v] = [(axis + 1) % 3, (axis + 2) % 3], open = new Uint8Array(shape[u] * shape[v]);
    const behind = (side ? 1 : -1) * strides[axis], last = side ? shape[axis] - 1 : 0;
    const shades = colours.map(hex => darker(hex, SHADES[axis]));
    for (let plane = 0; plane < shape[axis]; plane++) {
      for (let a = 0, n = 0; a < shape[u]; a++) for (let b = 0; b < shape[v]; b++, n++) {
        const index = plane * strides[axis] + a * strides[u] + b * strides[v];
        open[n] = plane !== last && kinds[index + behind] ? 0 : kinds[index];
      }
      for (const [kind, start, size] of rectangles(open, shape[u], shape[v])) {
        if (mesh.i.length >= 2 * most) return null;
        const first = mesh.x.length, corner = [];
        for (const [s, t] of SQUARE) {
          corner[axis] = plane + side, corner[u] = start[0] + s * size[0], corner[v] = start[1] + t * size[1];
          AXES.forEach((name, n) => mesh[name].push(corner[n] * voxel));
        }
        mesh.i.push(first, first), mesh.j.push(first + 1, first + 2), mesh.k.push(first + 2, first + 3);
        mesh.facecolor.push(shades[kind - 1], shades[kind - 1]);
      }
    }
  }
  return mesh;
}

// Rectangles [kind, start, size] that cover a plane of kinds [row, column] where it is not 0; empties it.
function rectangles(plane, rows, columns) {
  const found = [];
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const kind = plane[row * columns + column];
    if (!kind) continue;
    let width = 1, height = 0;
    while (column + width < columns && plane[row * columns + column + width] === kind) width++;
    const part = at => plane.subarray(at * columns + column, at * columns + column + width);
    while (row + height < rows && part(row + height).every(other => other === kind))
      part(row + height++).fill(0);
    found.push([kind, [row, column], [height, width]]);
  }
  return found;
}

function darker(hex, factor) {
  return `rgb(${rgb(hex).map(part => Math.round(part * factor))})`;
}

// The edges of a box [[low, high] along y, x, z] in nm.
function outline(box, line = { color: "#8c959f", width: 2 }) {
  const lines = { x: [], y: [], z: [], type: "scatter3d", mode: "lines", hoverinfo: "skip", line };
  for (let axis = 0; axis < 3; axis++) for (const [u, v] of SQUARE) {
    for (const end of [0, 1]) {
      const at = [];
      at[axis] = end, at[(axis + 1) % 3] = u, at[(axis + 2) % 3] = v;
      AXES.forEach((name, n) => lines[name].push(box[n][at[n]]));
    }
    AXES.forEach(name => lines[name].push(null));
  }
  return lines;
}

let camera = { eye: { x: 1.4, y: -1.95, z: 1.3 }, center: { x: 0, y: 0, z: -0.08 } }; // of all scenes

// How large a volume of so many nm along y, x, z is drawn.
function drawnSize([y, x, z], stretch = 1) {
  const unit = WIDTH / Math.max(x, y);
  return { x: unit * x, y: unit * y, z: unit * z * stretch };
}

function drawScene(id, mesh, shape, { stretch = 1, height = 400, more = [] } = {}) {
  const lengths = shape.map(size => size * PAGE.voxel_nm);
  const size = drawnSize(lengths, stretch);
  const ticks = drawn => (drawn > WIDTH / 3 ? [1, 2, 3] : [2]); // those at the ends would collide
  const axis = (name, length, drawn, upwards) => ({
    title: { text: `${name}, ${length} nm` }, showbackground: false, showspikes: false,
    tickvals: ticks(drawn).map(quarter => quarter / 4 * length),
    range: upwards ? [0, length] : [length, 0],
  });
  mesh = { ...mesh, type: "mesh3d", flatshading: true, hoverinfo: "skip",
    lighting: { ambient: 1, diffuse: 0, specular: 0, fresnel: 0 } }; // faces are shaded by SHADES
  const [y, x, z] = lengths;
  // Rows of images run downwards and so does depth: with both reversed, the volume is turned, not mirrored.
  const scene = { camera, aspectmode: "manual", aspectratio: size,
    xaxis: axis("x", x, size.x, true), yaxis: axis("y", y, size.y, false),
    zaxis: axis("depth", z, size.z, false) };
  const layout = { scene, height, margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false };
  return Plotly.react(id, [mesh, outline(lengths.map(length => [0, length])), ...more], layout, CONFIG);
}

// ---------------------------------------------------------------- contents

function linkSections() {
  for (const section of document.querySelectorAll("section")) {
    const link = Object.assign(document.createElement("a"), { href: "#" + section.id });
    link.textContent = section.querySelector("h2").textContent;
    document.querySelector("nav").append(link);
  }
}
