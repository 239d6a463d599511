// A photo with boxes on it: what Gradio has not. No library, nothing from elsewhere. drawing.js has the box that is drawn
// by mouse, touch or keys, editing.js the boxes that are moved, named and taken away, zoom.js what is seen of a photo that
// is larger than its place, pieces.js the smaller pieces.
(() => {
  "use strict";
  if (window.owlStage) return; // every piece brings this script
  const SVG = "http://www.w3.org/2000/svg";
  const CLICK_MS = 30; // after the release of a finger comes its click

  const make = (tag, className = "", text = "") => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text) node.textContent = text;
    return node;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  // Steps of the golden ratio around the colour wheel: neighbours in the list of queries look different.
  const colour = (label) => `hsl(${Math.round((0.02 + label * 0.618034) * 360) % 360} 85% 65%)`;

  // Two corners in any order → a box.
  const span = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  // The box moved by (dx, dy), as far as the photo goes; with ``size`` its right lower corner alone.
  const nudged = ([x0, y0, x1, y1], [dx, dy], { width, height }, size) => {
    if (size) return [x0, y0, clamp(x1 + dx, x0 + 2, width), clamp(y1 + dy, y0 + 2, height)];
    const [mx, my] = [clamp(dx, -x0, width - x1), clamp(dy, -y0, height - y1)];
    return [x0 + mx, y0 + my, x1 + mx, y1 + my];
  };

  // Words beside the mouse, at a place in a frame in shares of it; a frame has one such place.
  const tipIn = (frame) => {
    const tip = frame.querySelector(".owl-tip") || make("div", "owl-tip");
    tip.hidden = true;
    frame.append(tip);
    const say = (words, [x, y]) => {
      tip.replaceChildren(...words);
      tip.hidden = false;
      tip.style[x > 0.6 ? "right" : "left"] = `${100 * (x > 0.6 ? 1 - x : x)}%`;
      tip.style[x > 0.6 ? "left" : "right"] = "auto";
      tip.style.top = `${100 * y}%`;
      tip.classList.toggle("owl-inside", y < 0.12);
    };
    return { say, hide: () => { tip.hidden = true; } };
  };

  // A name and how sure it is; a name that is written from right to left keeps its place before the number.
  const titled = (name, score) => [make("bdi", "", name), score === null ? "" : ` ${score.toFixed(2)}`];

  // Draws anew what is in a node: what has the focus there has it afterwards, the nth of those that are alike.
  const refocused = (root, draw, selector = "") => {
    const own = root.contains(document.activeElement) ? document.activeElement : null;
    const kind = (one) => `${one.tagName} ${one.className.replace("owl-active", "").trim()}`;
    const which = own && kind(own);
    const alike = () => [...root.querySelectorAll(selector || own.tagName)].filter((one) => selector || kind(one) === which);
    const place = own ? alike().indexOf(own) : -1;
    draw();
    if (place < 0 || own.isConnected) return;
    const all = alike();
    all[Math.min(place, all.length - 1)]?.focus({ preventScroll: true });
  };
  // A button that is drawn anew between the press of a mouse and its release is not clicked: what is pressed stays as it
  // is for so long, with what stands beside it, and is drawn as it is by then.
  const waiting = new Map(); // a node → how it is drawn
  let pressed = null;
  let release = 0; // the timer of what happens after it
  addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.ctrlKey) return;
    clearTimeout(release);
    pressed = event.target;
  }, true);
  const released = () => {
    clearTimeout(release);
    release = setTimeout(() => {
      pressed = null;
      const now = [...waiting.values()];
      waiting.clear();
      now.forEach((draw) => draw());
    }, CLICK_MS);
  };
  ["pointerup", "pointercancel", "contextmenu", "dragend"].forEach((kind) => addEventListener(kind, released, true));
  addEventListener("blur", released); // of the window
  addEventListener("pointermove", (event) => { if (pressed && !event.buttons) released(); }, true); // it was missed
  const redrawn = (root, draw, selector = "") => {
    waiting.delete(root);
    if (root.contains(pressed)) waiting.set(root, () => redrawn(root, draw, selector));
    else refocused(root, draw, selector);
  };
  // What an arrow key alone moves: with Alt, Ctrl or Command it is the browser's.
  const moveOf = (event) => (event.altKey || event.ctrlKey || event.metaKey ? undefined : ARROWS[event.key]);

  window.owlShared = { make, clamp, colour, span, nudged, tipIn, titled, refocused, redrawn, moveOf }; // for the other files

  // A file that is dropped beside all places would take the place of the page.
  ["dragover", "drop"].forEach((kind) => document.addEventListener(kind, (event) => {
    if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "none";
  }));
  // What is pasted goes to one place of those that are seen: the one under the mouse or with the focus, else the first
  // that has no photo yet. Text that is pasted into a field stays there.
  const takers = [];
  document.addEventListener("paste", (event) => {
    const { files = [], types = [] } = event.clipboardData || {};
    if (!files.length || (types.includes("text/plain") && event.target.closest?.("input, textarea"))) return;
    const seen = takers.filter(({ root }) => root.offsetParent !== null);
    const one = seen.find(({ root }) => root.matches(":hover")) || seen.find(({ root }) => root.contains(document.activeElement))
      || seen.find(({ root }) => !root.classList.contains("owl-there")) || seen[0];
    one?.give(files);
  });

  // Files of a folder keep their path in it as their name, of which Gradio would leave only the last part.
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (!(input instanceof HTMLInputElement) || input.type !== "file" || !input.webkitdirectory) return;
    if (![...input.files].some((file) => file.webkitRelativePath)) return;
    event.stopImmediatePropagation();
    const transfer = new DataTransfer();
    [...input.files].forEach((file) =>
      transfer.items.add(new File([file], file.webkitRelativePath || file.name, { type: file.type })));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);

  let made = 0;

  // A photo, what is marked on it, and the table of that. Tells: "drawn" {box}, "pointed" {x, y}, "asked" {value}.
  // The value is made by stage_value in pieces.py.
  window.owlStage = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-stage");
    const mode = props.mode;
    const frame = make("div", `owl-frame owl-${mode}`);
    const photo = make("img");
    photo.draggable = false;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const labels = make("div", "owl-labels");
    const empty = make("button", "owl-empty");
    empty.type = "button";
    const note = make("div", "owl-note");
    note.setAttribute("role", "status");
    const table = make("div", "owl-table");
    frame.append(photo, svg, labels);
    const tip = tipIn(frame);
    // What is larger than its place is moved by its scroll bars, a finger or the wheel.
    const scroll = make("div", "owl-scroll");
    const zooms = make("div", "owl-zooms");
    zooms.setAttribute("role", "group");
    zooms.setAttribute("aria-label", "Size of the photo");
    scroll.append(frame);
    root.append(empty, scroll, zooms, note, table);
    root.classList.toggle("owl-shut", !props.upload);
    empty.disabled = !props.upload;
    let state = {};

    // Gradio puts the input of an upload button before the button.
    const fileInput = () => {
      let node = props.upload ? document.getElementById(props.upload) : null;
      while (node && !node.matches("input[type=file]")) node = node.previousElementSibling;
      return node;
    };
    const give = (files) => {
      const input = fileInput();
      const pictures = [...files].filter((file) => file.type.startsWith("image/"));
      if (!input || !files.length) return;
      if (!pictures.length) {
        note.replaceChildren(make("p", "", `${files[0].name} is no picture; the photo stays as it was.`));
        return;
      }
      const transfer = new DataTransfer();
      pictures.slice(0, input.multiple ? pictures.length : 1).forEach((one) => transfer.items.add(one));
      input.files = transfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    };
    empty.addEventListener("click", () => fileInput()?.click());
    root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("owl-over"); });
    root.addEventListener("dragleave", () => root.classList.remove("owl-over"));
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      root.classList.remove("owl-over");
      give(event.dataTransfer.files);
    });
    if (props.upload) takers.push({ root, give });

    const zoomed = window.owlShared.zooming({ root, frame, photo, scroll, zooms, props, trigger, watch, value: () => state });
    const rectangle = (box, className, stroke) => {
      const rect = document.createElementNS(SVG, "rect");
      const [x0, y0, x1, y1] = box;
      Object.entries({ x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0), class: className })
        .forEach(([key, value]) => rect.setAttribute(key, value));
      if (stroke) rect.style.stroke = stroke;
      svg.append(rect);
      return rect;
    };
    const light = (index) => {
      frame.classList.toggle("owl-lit", index >= 0);
      root.querySelectorAll("[data-box]").forEach((node) =>
        node.classList.toggle("owl-active", Number(node.dataset.box) === index));
    };
    const hoverable = (node, index) => {
      node.dataset.box = index;
      node.addEventListener("pointerenter", () => light(index));
      node.addEventListener("pointerleave", () => light(-1));
      return node;
    };

    // The pixels that a thing has, as a path in pixels of the photo; the mouse over them says what it is.
    const outline = (one, index) => {
      for (const className of ["owl-outline-under", "owl-outline"]) {
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("d", one.outline);
        path.setAttribute("class", className);
        path.dataset.box = index;
        svg.append(path);
        if (className === "owl-outline-under") continue;
        path.style.stroke = path.style.fill = colour(one.query);
        hoverable(path, index);
        path.addEventListener("pointermove", (event) => {
          const place = frame.getBoundingClientRect();
          tip.say(titled(one.label, one.score), [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height]);
        });
        path.addEventListener("pointerleave", tip.hide);
      }
    };
    const drawMarks = () => {
      svg.replaceChildren();
      tip.hide();
      frame.classList.remove("owl-lit"); // what the mouse was over goes without a word
      svg.classList.toggle("owl-unfilled", Boolean(state.heat));
      labels.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${state.width || 1} ${state.height || 1}`);
      (state.lines || []).forEach(([x0, y0, x1, y1]) => {
        for (const className of ["owl-line-under", "owl-line"]) {
          const line = document.createElementNS(SVG, "line");
          Object.entries({ x1: x0, y1: y0, x2: x1, y2: y1, class: className })
            .forEach(([key, value]) => line.setAttribute(key, value));
          svg.append(line);
        }
      });
      (state.parts || []).forEach((box) => rectangle(box, "owl-part"));
      if (state.cell) rectangle(state.cell, "owl-cell");
      const boxes = state.boxes || [];
      [...boxes.keys()].reverse().forEach((index) => {
        const one = boxes[index];
        if (one.patch) hoverable(rectangle(one.patch, "owl-patch"), index);
        const thin = one.outline ? " owl-thin" : "";
        rectangle(one.box, `owl-box-under${thin}`).dataset.box = index;
        hoverable(rectangle(one.box, `owl-box${thin}`, colour(one.query)), index);
        const tag = hoverable(make("span", "owl-tag"), index);
        tag.append(...titled(one.label, one.score));
        const [x0, y0, x1] = one.box;
        const right = x0 / state.width > 0.6;
        tag.style.background = colour(one.query);
        const beside = 100 * (right ? 1 - x1 / state.width : x0 / state.width);
        tag.style[right ? "right" : "left"] = `${beside}%`;
        tag.style.maxWidth = `${100 - beside}%`; // a long name stays on the photo
        tag.style.top = `${(100 * y0) / state.height}%`;
        tag.classList.toggle("owl-inside", y0 / state.height < 0.06);
        labels.append(tag);
      });
      // Small things lie on large ones, so that the mouse reaches them.
      const size = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
      [...boxes.entries()].filter(([, one]) => one.outline).sort(([, a], [, b]) => size(b.box) - size(a.box))
        .forEach(([index, one]) => outline(one, index));
      stage.marked();
    };
    const handle = ([x, y]) => {
      const node = make("i", "owl-handle");
      node.style.left = `${(100 * x) / state.width}%`;
      node.style.top = `${(100 * y) / state.height}%`;
      return node;
    };

    const cell = (tag, text, className = "") => make(tag, className, text);
    // "This is one" and "this is none" for a found box.
    const likes = (one) => {
      const { of } = stage;
      const place = cell("td", "", "owl-likes");
      if (one.query >= (state.asked ?? Infinity)) return place; // the name is nothing that was asked for
      [[true, "+", "is an example of"], [false, "−", "is not"]].forEach(([wanted, sign, words]) => {
        const button = make("button", "", sign);
        button.type = "button";
        button.title = `This box ${words} “${one.label}”`;
        button.setAttribute("aria-label", button.title);
        button.addEventListener("click", () => trigger("liked", { box: one.box, name: one.label, query: one.query, wanted, of }));
        place.append(button);
      });
      return place;
    };
    const drawTable = () => redrawn(table, fillTable);
    const fillTable = () => {
      table.replaceChildren();
      const boxes = props.table ? state.boxes || [] : [];
      if (!boxes.length) return;
      const grid = make("table");
      const head = make("tr");
      ["colour", "name", "score", "box (x y x y, px)", ...(props.likes ? ["example?"] : [])].forEach((text, i) => {
        const title = cell("th", "", i === 3 ? "owl-wide" : "");
        title.scope = "col";
        title.append(make("span", i ? "" : "owl-unseen", text));
        head.append(title);
      });
      const body = make("tbody");
      boxes.forEach((one, index) => {
        const row = hoverable(make("tr"), index);
        row.owlMark = { mark: one, of: stage.of };
        row.tabIndex = 0;
        row.addEventListener("focus", () => light(index));
        row.addEventListener("blur", () => light(-1));
        const swatch = cell("td", "");
        const dot = make("i", "owl-dot");
        dot.style.background = colour(one.query);
        swatch.append(dot);
        const score = cell("td", "", "owl-score");
        const bar = make("span", "owl-bar");
        bar.style.setProperty("--share", one.score ?? 0);
        if (one.score === null) score.append("by hand");
        else score.append(bar, one.score.toFixed(3));
        row.append(swatch, cell("td", one.label, "owl-name"), score, cell("td", one.box.map(Math.round).join("  "), "owl-wide owl-mono"));
        if (props.likes) row.append(likes(one));
        body.append(row);
      });
      const top = make("thead");
      top.append(head);
      grid.append(top, body);
      table.append(grid);
    };
    const drawNote = () => redrawn(note, fillNote);
    const fillNote = () => {
      note.replaceChildren();
      if (!state.note) return;
      const { text, action, value } = state.note;
      note.append(make("p", "", text));
      if (!action) return;
      const button = make("button", "owl-action", action);
      button.type = "button";
      button.addEventListener("click", () => trigger("asked", { value }));
      note.append(button);
    };

    const draw = () => {
      if (stage.held()) return;
      const before = state;
      state = JSON.parse(JSON.stringify(props.value || {}));
      const there = Boolean(state.src);
      const chose = there && document.activeElement === empty;
      root.classList.toggle("owl-there", there);
      empty.replaceChildren(make("strong", "", state.title || ""), make("span", "", state.text || ""));
      if (there && before.src !== state.src) photo.src = state.src;
      photo.alt = state.alt || "";
      frame.style.aspectRatio = there ? `${state.width} / ${state.height}` : "";
      frame.style.setProperty("--ratio", there ? state.width / state.height : 1);
      zoomed.came(before);
      stage.came(before);
      drawMarks();
      drawTable();
      drawNote();
      if (chose) (frame.tabIndex < 0 ? zooms.querySelector("button:enabled") : frame)?.focus({ preventScroll: true });
    };

    const at = (event) => {
      const place = frame.getBoundingClientRect();
      return [
        clamp((event.clientX - place.left) / place.width, 0, 1) * state.width,
        clamp((event.clientY - place.top) / place.height, 0, 1) * state.height,
      ];
    };
    const stage = {
      root, frame, svg, labels, scroll, zooms, props, trigger, at, rectangle, handle, draw,
      redraw: () => { drawMarks(); drawTable(); },
      id: `owl-stage-${(made += 1)}`,
      zoomed,
      get value() { return state; },
      get of() { return state.key ?? null; }, // which photo is meant
      held: () => false, // true: what comes now is drawn later
      came: () => {}, // a new value, before it is drawn
      marked: () => {}, // the marks are drawn
    };
    const { drawing, pointing, editing } = window.owlShared;
    if (mode === "draw") drawing(stage);
    if (mode === "point") pointing(stage);
    if (props.edits) editing(stage);
    watch(["value"], draw);
    draw();
  };
})();
