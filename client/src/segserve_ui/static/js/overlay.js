// Masks drawn in the browser: run lengths become maps of object numbers at the screen's resolution, and colours are
// painted from these, so that sliders and hovering need neither a request nor another look at the masks.

const MOST_LAYERS = 24;

/** Return the runs of COCO's compressed run-length encoding: background and object in turns, columns first. */
export function runLengths(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0;
    for (let shift = 0; ; shift += 5) {
      const part = counts.charCodeAt(at++) - 48;
      value |= (part & 0x1f) << shift;
      if (part & 0x20) continue;
      if (part & 0x10 && shift + 5 < 32) value |= -1 << (shift + 5);
      break;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Call `paint(column, top, bottom)` for each stretch of a mask, in pixels of a picture of `width` x `height`. */
export function stretches(counts, answer, width, height, paint) {
  const across = width / answer.width;
  const down = height / answer.height;
  // The pixels of the picture whose centre is in a row or column of the image.
  const first = (place, scale) => Math.ceil(place * scale - 0.5);
  let start = 0;
  runLengths(counts).forEach((length, number) => {
    const end = start + length;
    if (number % 2 === 1) {
      let place = start;
      while (place < end) {
        const column = Math.floor(place / answer.height);
        const stop = Math.min(end, (column + 1) * answer.height);
        const left = first(column, across);
        const right = first(column + 1, across);
        if (left < right) {
          const top = first(place - column * answer.height, down);
          const bottom = first(stop - column * answer.height, down);
          if (top < bottom) for (let x = left; x < right; x++) paint(x, top, bottom);
        }
        place = stop;
      }
    }
    start = end;
  });
}

/** The masks of an answer at one resolution, as layers: objects that overlap are in different ones, the best on top. */
export class Layers {
  constructor(answer, width, height) {
    this.answer = answer;
    this.width = width;
    this.height = height;
    this.layers = [];
    const occupied = answer.overlaps ? new Uint8Array(width * height) : null;
    for (let index = answer.objects.length - 1; index >= 0; index--) {
      const { mask } = answer.objects[index];
      if (!mask) continue;
      let layer = 0;
      if (occupied) {
        stretches(mask, answer, width, height, (x, top, bottom) => {
          for (let at = top * width + x, end = bottom * width; at < end; at += width) if (occupied[at] > layer) layer = occupied[at];
        });
        layer = Math.min(layer, MOST_LAYERS - 1);
      }
      while (this.layers.length <= layer) this.layers.push(new Uint16Array(width * height));
      const map = this.layers[layer];
      stretches(mask, answer, width, height, (x, top, bottom) => {
        for (let at = top * width + x, end = bottom * width; at < end; at += width) {
          map[at] = index + 1;
          if (occupied) occupied[at] = layer + 1;
        }
      });
    }
  }

  /** Return the index of the topmost shown object at a pixel, or -1. */
  at(x, y, shown) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return -1;
    const place = y * this.width + x;
    for (let layer = this.layers.length - 1; layer >= 0; layer--) {
      const index = this.layers[layer][place] - 1;
      if (index >= 0 && shown[index]) return index;
    }
    return boxAt(this.answer, ((x + 0.5) * this.answer.width) / this.width, ((y + 0.5) * this.answer.height) / this.height, shown);
  }

  /** Return a map of class numbers (0 is none) of what is shown; `numberOf` gives each object's. */
  classes(shown, numberOf) {
    const found = new Uint16Array(this.width * this.height);
    for (const map of this.layers) {
      for (let at = 0; at < map.length; at++) {
        const index = map[at] - 1;
        if (index >= 0 && shown[index]) found[at] = numberOf(this.answer.objects[index]);
      }
    }
    return found;
  }

  /** Paint the shown objects onto a canvas: filled, outlined, `bright` ones stronger. */
  paint(canvas, { shown, colours, opacity, bright = new Set() }) {
    const { width, height } = this;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const out = picture.data;
    const count = this.answer.objects.length;
    const [red, green, blue, fill, edge] = Array.from({ length: 5 }, () => new Float32Array(count + 1));
    for (let index = 0; index < count; index++) {
      if (!shown[index]) continue;
      [red[index + 1], green[index + 1], blue[index + 1]] = rgb(colours[index]);
      fill[index + 1] = bright.has(index) ? Math.min(1, opacity + 0.3) : opacity;
      edge[index + 1] = Math.max(fill[index + 1], Math.min(1, opacity * 2.2));
    }
    for (const map of this.layers) {
      for (let y = 0, at = 0; y < height; y++) {
        for (let x = 0; x < width; x++, at++) {
          const one = map[at];
          if (one === 0 || fill[one] === 0) continue;
          const border = x === 0 || y === 0 || x === width - 1 || y === height - 1
            || map[at - 1] !== one || map[at + 1] !== one || map[at - width] !== one || map[at + width] !== one;
          const alpha = border ? edge[one] : fill[one];
          const place = 4 * at;
          const under = (out[place + 3] / 255) * (1 - alpha);
          const total = alpha + under;
          out[place] = (red[one] * alpha + out[place] * under) / total;
          out[place + 1] = (green[one] * alpha + out[place + 1] * under) / total;
          out[place + 2] = (blue[one] * alpha + out[place + 2] * under) / total;
          out[place + 3] = 255 * total;
        }
      }
    }
    context.putImageData(picture, 0, 0);
    this.#shapes(context, shown, colours, opacity, bright);
  }

  /** Draw boxes and keypoints: of all objects without a mask, and the box of each bright one. */
  #shapes(context, shown, colours, opacity, bright) {
    const { answer, width, height } = this;
    const across = width / answer.width;
    const down = height / answer.height;
    const line = Math.max(1, Math.min(width, height) / 400);
    for (let index = answer.objects.length - 1; index >= 0; index--) {
      const object = answer.objects[index];
      if (!shown[index] || !object.box || (object.mask && !bright.has(index))) continue;
      const [x1, y1, x2, y2] = object.box;
      context.globalAlpha = object.mask ? 1 : Math.min(1, opacity * 2.2);
      context.lineWidth = bright.has(index) ? 1.5 * line : line;
      context.strokeStyle = colours[index];
      context.strokeRect(x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down);
      for (const [x, y, score] of object.points ?? []) {
        if (score <= 0) continue;
        context.beginPath();
        context.arc(x * across, y * down, 2.5 * line, 0, 2 * Math.PI);
        context.fillStyle = colours[index];
        context.fill();
        context.lineWidth = line / 2;
        context.strokeStyle = "#ffffff";
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }
}

function boxAt(answer, x, y, shown) {
  let best = -1;
  let least = Infinity;
  answer.objects.forEach((object, index) => {
    if (!shown[index] || object.mask || !object.box) return;
    const [x1, y1, x2, y2] = object.box;
    const area = (x2 - x1) * (y2 - y1);
    if (x >= x1 && x <= x2 && y >= y1 && y <= y2 && area < least) { best = index; least = area; }
  });
  return best;
}

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** Return for each object whether it is shown at a lowest score and without the hidden classes. */
export function shownObjects(answer, lowest, hidden) {
  const background = new Set(answer.classes.filter((known) => known.background).map((known) => known.id));
  return answer.objects.map((object) => (object.score === null || answer.kind === "semantic" || object.score >= lowest)
    && !hidden.has(object.classId) && !(background.has(object.classId) && answer.kind === "semantic"));
}

/** Return the colour of each object, by itself or by its class. */
export function coloursOf(answer, byClass) {
  const classes = new Map(answer.classes.map((known) => [known.id, known.colour]));
  return answer.objects.map((object) => (byClass ? classes.get(object.classId) ?? object.colour : object.colour));
}

/** Return the width in CSS pixels at which an image fits the window: small ones are shown at up to three times their size. */
export function fitted(answer, room) {
  const most = (Math.max(320, window.innerHeight - 210) * answer.width) / answer.height;
  return Math.round(Math.min(room, 3 * answer.width, most));
}

/** Return a size with the aspect of the image that fits into `room` pixels of width and is not above the image's own. */
export function displaySize(answer, room, most = 4_000_000) {
  const scale = Math.min(1, room / answer.width, Math.sqrt(most / (answer.width * answer.height)));
  return [Math.max(1, Math.round(answer.width * scale)), Math.max(1, Math.round(answer.height * scale))];
}
