"""The brush of the web page, with which a mask is painted over the image to start from.

It runs in the browser. What it sends is a PNG of at most 512 x 512 pixels in a data address, opaque
where it was painted; `web_form` reads it. Gradio's own editor would send whole images, and its
server would keep them in memory.
"""

from __future__ import annotations

# The element into whose text the mask is written.
TARGET = "painted-mask"
# The field with the image to paint on.
SOURCE = "start-image"

HTML = """
<div class="brush" hidden>
  <div class="brush-title">Paint over what is to be filled in</div>
  <div class="brush-board"><img alt="The image to paint on"><canvas></canvas></div>
  <div class="brush-tools">
    <label>Brush <input type="range" min="1" max="40" value="12" aria-label="Brush size"></label>
    <label><input type="checkbox"> Erase</label>
    <button type="button">Clear the mask</button>
  </div>
</div>
"""

CSS = """
.brush-title { font-size: 0.9em; margin-bottom: 0.4em; }
.brush-board { position: relative; line-height: 0; }
.brush-board img { width: 100%; display: block; }
.brush-board canvas {
  position: absolute; inset: 0; width: 100%; height: 100%;
  opacity: 0.7; cursor: crosshair; touch-action: none;
}
.brush-tools {
  display: flex; flex-wrap: wrap; gap: 0.5em 1em; align-items: center; padding: 0.5em 0;
}
.brush-tools label { display: flex; gap: 0.4em; align-items: center; }
.brush-tools button {
  border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0.2em 0.7em;
  font: inherit;
}
"""

# Runs once, with `element`, the part of the page that holds HTML.
SCRIPT = """
const part = (name) => element.querySelector(name);
const [box, image, canvas] = ['.brush', 'img', 'canvas'].map(part);
const [size, erase] = ['input[type=range]', 'input[type=checkbox]'].map(part);
const pen = canvas.getContext('2d');
let last = null, touched = false;

function send(text) {
  const field = document.querySelector('#TARGET textarea, #TARGET input');
  field.value = text;
  field.dispatchEvent(new Event('input', { bubbles: true }));
}
function clear() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  touched = false;
  send('');
}
function place(event) {
  const frame = canvas.getBoundingClientRect();
  return [
    (event.clientX - frame.left) * canvas.width / frame.width,
    (event.clientY - frame.top) * canvas.height / frame.height,
  ];
}
function draw(event) {
  const here = place(event);
  pen.globalCompositeOperation = erase.checked ? 'destination-out' : 'source-over';
  pen.strokeStyle = '#ff3d7f';
  pen.lineCap = pen.lineJoin = 'round';
  pen.lineWidth = size.value / 100 * Math.max(canvas.width, canvas.height);
  pen.beginPath();
  pen.moveTo(...(last || here));
  pen.lineTo(...here);
  pen.stroke();
  last = here;
  touched = true;
}
canvas.addEventListener('pointerdown', (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = null;
  draw(event);
});
canvas.addEventListener('pointermove', (event) => { if (event.buttons & 1) draw(event); });
canvas.addEventListener('pointerup', () => { if (touched) send(canvas.toDataURL('image/png')); });
part('button').addEventListener('click', clear);
image.addEventListener('load', () => {
  const scale = Math.min(1, 512 / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  box.hidden = false;
  clear();
});
window.showBrush = (address) => {
  if (address) { image.src = address; return; }
  box.hidden = true;
  image.removeAttribute('src');
  clear();
};
""".replace("TARGET", TARGET)

# Runs when the image changes, with the file that is shown, or null.
SHOW = "(file) => { window.showBrush && window.showBrush(file && file.url); }"
