// A square of black paper: draw with mouse, pen or finger; the pixels go to the kernel alone.
function render({ model, el }) {
  const size = model.get("image_size"), scale = 10;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size * scale;
  // The pointer is the pen's outline, as wide as its stroke, in a color that shows on both.
  const wide = 2 * scale, ring = wide / 2 - 1;
  const outline =
    `<svg xmlns='http://www.w3.org/2000/svg' width='${wide}' height='${wide}'><circle ` +
    `cx='${wide / 2}' cy='${wide / 2}' r='${ring}' fill='none' stroke='orange'/></svg>`;
  const cursor = `url("data:image/svg+xml,${encodeURIComponent(outline)}")`;
  canvas.style = "display:block;border:1px solid #888;touch-action:none;max-width:100%";
  canvas.style.cursor = `${cursor} ${wide / 2} ${wide / 2}, crosshair`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "drawing pad");
  // The hint lies over the canvas, so that it is never part of the drawing.
  const hint = document.createElement("div");
  hint.textContent = "draw a digit here";
  hint.style =
    "position:absolute;inset:0;display:flex;align-items:center;justify-content:center;" +
    "color:#aaa;pointer-events:none";
  const paper = document.createElement("div");
  paper.style = `position:relative;width:${canvas.width + 2}px;max-width:100%`;
  paper.append(canvas, hint);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const clear = () => {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    hint.style.visibility = "visible";
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const zoom = canvas.width / box.width;
    return [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
  };
  let last = null;
  const stroke = (event) => {
    const here = at(event);
    pen.strokeStyle = "white";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = wide;
    pen.beginPath();
    pen.moveTo(...(last || here));
    pen.lineTo(...here);
    pen.stroke();
    last = here;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    hint.style.visibility = "hidden";
    stroke(event); // a touch alone is a dot
  });
  canvas.addEventListener("pointermove", (event) => last && stroke(event));
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, () => (last = null));
  const button = (text, work) => {
    const made = document.createElement("button");
    made.textContent = text;
    made.className = "jupyter-button widget-button";
    made.style = "margin:4px;width:auto;padding:0 10px";
    made.addEventListener("click", work);
    return made;
  };
  const send = () => {
    const drawn = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    const pixels = new Array(size * size).fill(0);
    for (let y = 0; y < canvas.height; y++)
      for (let x = 0; x < canvas.width; x++)
        pixels[Math.floor(y / scale) * size + Math.floor(x / scale)] +=
          drawn[4 * (y * canvas.width + x)] / (255 * scale * scale);
    model.set("pixels", pixels.map((value) => Math.min(value, 1)));
    model.set("sent", model.get("sent") + 1);
    model.save_changes();
  };
  const below = document.createElement("div");
  below.append(button(model.get("action"), send), button("clear", clear));
  clear();
  el.append(paper, below);
}
export default { render };
