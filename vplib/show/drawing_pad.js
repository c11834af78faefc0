// A square of black paper: draw with mouse, pen or finger; the pixels go to the kernel alone.
function render({ model, el }) {
  const size = model.get("image_size"), scale = 10;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size * scale;
  canvas.style = "border:1px solid #888;touch-action:none;cursor:crosshair;max-width:100%";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "drawing pad");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const clear = () => {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const zoom = canvas.width / box.width;
    return [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
  };
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const here = at(event);
    pen.strokeStyle = "white";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2 * scale;
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(...here);
    pen.stroke();
    last = here;
  });
  canvas.addEventListener("pointerup", () => (last = null));
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
  el.append(canvas, below);
}
export default { render };
