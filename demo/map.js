// A photo under its map of names: the mouse over an area says what it is. stage.js, which has the photo, comes before.
(() => {
  "use strict";
  if (window.owlMap) return; // every piece brings this script
  const { make, clamp, colour, tipIn, titled, redrawn } = window.owlShared;
  // How much of the photo is seen through its map, and through what is not pointed at.
  const OPAQUE = 0.55;
  const PALE = 0.15;
  const percent = (share) => (share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`);

  // The red, green and blue of a colour as CSS writes it.
  const rgb = (css) => {
    const one = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    one.fillStyle = css;
    one.fillRect(0, 0, 1, 1);
    return one.getImageData(0, 0, 1, 1).data;
  };

  // As owlStage; the value may hold ``map``, which map_value in mapping.py makes.
  window.owlMap = (element, props, trigger, watch) => {
    window.owlStage(element, props, trigger, watch);
    const frame = element.querySelector(".owl-frame");
    const canvas = make("canvas", "owl-map");
    canvas.setAttribute("aria-hidden", "true");
    const tip = tipIn(frame);
    const legend = make("ul", "owl-legend");
    legend.setAttribute("aria-label", "What the photo shows");
    frame.append(canvas);
    element.querySelector(".owl-stage").append(legend);
    let pixels = null; // of the map: which name, and how sure
    let areas = [];
    let held = -1; // the area of the button that was pressed
    let number = 0;

    const paint = (only) => {
      if (!pixels) return;
      const context = canvas.getContext("2d");
      const drawn = context.createImageData(pixels.width, pixels.height);
      const colours = new Map(areas.map((one) => [one.id + 1, rgb(colour(one.id))]));
      for (let i = 0; i < pixels.data.length; i += 4) {
        const own = colours.get(pixels.data[i]);
        if (!own) continue;
        drawn.data.set(own, i);
        drawn.data[i + 3] = 255 * (only < 0 || only + 1 === pixels.data[i] ? OPAQUE : PALE);
      }
      context.putImageData(drawn, 0, 0);
    };
    const light = (id) => {
      legend.querySelectorAll("button").forEach((node) => node.classList.toggle("owl-active", Number(node.dataset.id) === id));
      paint(id);
    };
    const drawLegend = () => redrawn(legend, () => {
      if (held >= 0) {
        held = -1;
        paint(-1);
      }
      legend.replaceChildren(...areas.map((one) => {
        const row = make("li");
        const button = make("button");
        button.type = "button";
        button.dataset.id = one.id;
        button.setAttribute("aria-pressed", "false");
        const dot = make("i", "owl-dot");
        dot.style.background = colour(one.id);
        button.append(dot, make("span", "owl-name", one.name), make("span", "owl-share", `${percent(one.share)}, score ${one.score.toFixed(2)}`));
        button.addEventListener("pointerenter", () => light(one.id));
        button.addEventListener("pointerleave", () => light(held));
        button.addEventListener("click", () => {
          held = held === one.id ? -1 : one.id;
          legend.querySelectorAll("button").forEach((node) => node.setAttribute("aria-pressed", String(Number(node.dataset.id) === held)));
          light(held);
        });
        row.append(button);
        return row;
      }));
    });

    frame.addEventListener("pointermove", (event) => {
      if (!pixels) return;
      const place = frame.getBoundingClientRect();
      const [x, y] = [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height];
      const column = clamp(Math.floor(x * pixels.width), 0, pixels.width - 1);
      const row = clamp(Math.floor(y * pixels.height), 0, pixels.height - 1);
      const place4 = 4 * (row * pixels.width + column);
      const [id, sure] = [pixels.data[place4], pixels.data[place4 + 1]];
      const area = areas.find((one) => one.id + 1 === id);
      tip.say(area ? titled(area.name, sure / 255) : ["nothing that was named"], [x, y]);
    });
    frame.addEventListener("pointerleave", tip.hide);

    const draw = () => {
      const value = JSON.parse(JSON.stringify(props.value || {})).map;
      const own = (number += 1);
      areas = value ? value.areas : [];
      drawLegend();
      if (!value) {
        pixels = null;
        canvas.hidden = true;
        tip.hide();
        return;
      }
      const picture = make("img");
      picture.addEventListener("load", () => {
        if (own !== number) return; // a newer map came meanwhile
        canvas.width = picture.naturalWidth;
        canvas.height = picture.naturalHeight;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(picture, 0, 0);
        pixels = context.getImageData(0, 0, canvas.width, canvas.height);
        canvas.hidden = false;
        paint(-1);
        canvas.dataset.drawn = String(own);
      });
      picture.src = value.src;
    };
    watch(["value"], draw);
    draw();
  };
})();
