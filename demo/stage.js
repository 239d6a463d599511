// A photo with boxes on it, and a box drawn by mouse, touch or keys: what Gradio has not. No library, nothing from
// elsewhere. pieces.js has the smaller pieces.
(() => {
  "use strict";
  if (window.owlStage) return; // every piece brings this script
  const SVG = "http://www.w3.org/2000/svg";
  const STEP = 0.02; // what an arrow key moves, as a share of the photo
  const HANDLE_PX = 16;

  const make = (tag, className = "", text = "") => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text) node.textContent = text;
    return node;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  // Steps of the golden ratio around the colour wheel: neighbours in the list of queries look different.
  const colour = (label) => `hsl(${Math.round((0.02 + label * 0.618034) * 360) % 360} 85% 65%)`;

  window.owlShared = { make, clamp, colour }; // for pieces.js

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
    let draft = null; // [x0, y0, x1, y1] in pixels of the photo
    let corner = null; // the first of two clicks
    let active = -1;

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
      transfer.items.add(pictures[0]);
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
    document.addEventListener("paste", (event) => {
      const typing = event.target.closest && event.target.closest("input, textarea");
      if (props.upload && !typing && root.offsetParent !== null) give(event.clipboardData.files);
    });

    let zoom = 1;
    const setZoom = (value, [x, y] = [0.5, 0.5]) => {
      const before = zoom;
      zoom = clamp(value, 1, 8);
      const [left, top] = [scroll.scrollLeft + x * scroll.clientWidth, scroll.scrollTop + y * scroll.clientHeight];
      const grown = frame.clientWidth;
      frame.style.setProperty("--zoom", zoom);
      scroll.classList.toggle("owl-zoomed", zoom > 1);
      if (zoom > 1) scroll.tabIndex = 0; // so that arrow keys move it
      else scroll.removeAttribute("tabindex");
      const factor = before === zoom ? 1 : frame.clientWidth / Math.max(1, grown);
      scroll.scrollLeft = left * factor - x * scroll.clientWidth;
      scroll.scrollTop = top * factor - y * scroll.clientHeight;
      smaller.disabled = zoom <= 1;
      larger.disabled = zoom >= 8;
    };
    const zoomButton = (sign, words, step) => {
      const button = make("button", "", sign);
      button.type = "button";
      button.title = words;
      button.setAttribute("aria-label", words);
      button.addEventListener("click", () => setZoom(zoom * step));
      zooms.append(button);
      return button;
    };
    const smaller = zoomButton("−", "Smaller", 1 / 1.5);
    const larger = zoomButton("+", "Larger", 1.5);
    smaller.disabled = true;
    scroll.addEventListener("wheel", (event) => {
      if (!event.ctrlKey || !state.src) return; // without it the page scrolls; with it, and by pinching, browsers zoom
      event.preventDefault();
      const place = scroll.getBoundingClientRect();
      const at = [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height];
      setZoom(zoom * Math.exp(-event.deltaY / 300), at);
    }, { passive: false });

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
      active = index;
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

    const drawMarks = () => {
      svg.replaceChildren();
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
        rectangle(one.box, "owl-box-under").dataset.box = index;
        hoverable(rectangle(one.box, "owl-box", colour(one.query)), index);
        const tag = hoverable(make("span", "owl-tag", `${one.label} ${one.score.toFixed(2)}`), index);
        const [x0, y0, x1] = one.box;
        const right = x0 / state.width > 0.6;
        tag.style.background = colour(one.query);
        tag.style[right ? "right" : "left"] = `${100 * (right ? 1 - x1 / state.width : x0 / state.width)}%`;
        tag.style.top = `${(100 * y0) / state.height}%`;
        tag.classList.toggle("owl-inside", y0 / state.height < 0.06);
        labels.append(tag);
      });
      drawDraft();
    };
    const drawDraft = () => {
      svg.querySelectorAll(".owl-draft, .owl-draft-under").forEach((node) => node.remove());
      labels.querySelectorAll(".owl-handle").forEach((node) => node.remove());
      if (corner) labels.append(handle(corner));
      if (!draft) return;
      rectangle(draft, "owl-draft-under");
      rectangle(draft, "owl-draft");
      const [x0, y0, x1, y1] = draft;
      [[x0, y0], [x1, y0], [x0, y1], [x1, y1]].forEach((point) => labels.append(handle(point)));
    };
    const handle = ([x, y]) => {
      const node = make("i", "owl-handle");
      node.style.left = `${(100 * x) / state.width}%`;
      node.style.top = `${(100 * y) / state.height}%`;
      return node;
    };

    const cell = (tag, text, className = "") => make(tag, className, text);
    const drawTable = () => {
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
        row.tabIndex = 0;
        row.addEventListener("focus", () => light(index));
        row.addEventListener("blur", () => light(-1));
        const swatch = cell("td", "");
        const dot = make("i", "owl-dot");
        dot.style.background = colour(one.query);
        swatch.append(dot);
        const score = cell("td", "", "owl-score");
        const bar = make("span", "owl-bar");
        bar.style.setProperty("--share", one.score);
        score.append(bar, document.createTextNode(one.score.toFixed(3)));
        row.append(swatch, cell("td", one.label, "owl-name"), score, cell("td", one.box.map(Math.round).join("  "), "owl-wide owl-mono"));
        if (props.likes) row.append(likes(one));
        body.append(row);
      });
      const top = make("thead");
      top.append(head);
      grid.append(top, body);
      table.append(grid);
    };
    // "This is one" and "this is none" for a found box.
    const likes = (one) => {
      const place = cell("td", "", "owl-likes");
      [[true, "+", "is an example of"], [false, "−", "is not"]].forEach(([wanted, sign, words]) => {
        const button = make("button", "", sign);
        button.type = "button";
        button.title = `This box ${words} “${one.label}”`;
        button.setAttribute("aria-label", button.title);
        button.addEventListener("click", () => trigger("liked", { box: one.box, query: one.query, wanted }));
        place.append(button);
      });
      return place;
    };
    const drawNote = () => {
      note.replaceChildren();
      if (!state.note) return;
      note.append(make("p", "", state.note.text));
      if (state.note.action) {
        const button = make("button", "owl-action", state.note.action);
        button.type = "button";
        button.addEventListener("click", () => trigger("asked", { value: state.note.value }));
        note.append(button);
      }
    };

    const draw = () => {
      const before = state.src;
      state = JSON.parse(JSON.stringify(props.value || {}));
      const there = Boolean(state.src);
      root.classList.toggle("owl-there", there);
      empty.replaceChildren(make("strong", "", state.title || ""), make("span", "", state.text || ""));
      if (there && before !== state.src) photo.src = state.src;
      if (!there) setZoom(1);
      photo.alt = state.alt || "";
      frame.style.aspectRatio = there ? `${state.width} / ${state.height}` : "";
      frame.style.setProperty("--ratio", there ? state.width / state.height : 1);
      draft = mode === "draw" ? state.draft || null : null;
      corner = null;
      active = -1;
      drawMarks();
      drawTable();
      drawNote();
    };

    // --- Drawing a box, pointing at a patch ---
    const at = (event) => {
      const place = frame.getBoundingClientRect();
      return [
        clamp((event.clientX - place.left) / place.width, 0, 1) * state.width,
        clamp((event.clientY - place.top) / place.height, 0, 1) * state.height,
      ];
    };
    const span = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    const tell = () => trigger("drawn", { box: draft ? draft.map((value) => Math.round(value * 10) / 10) : null });
    let later = 0;
    const tellLater = () => { clearTimeout(later); later = setTimeout(tell, 250); };

    if (mode === "draw") {
      frame.tabIndex = 0;
      frame.setAttribute("role", "application");
      frame.setAttribute("aria-label", "Photo to draw a box on: drag, click two corners, or press Enter for a box, arrow keys to move it, Shift with arrow keys to size it, Delete to take it away");
      let drag = null;
      const grip = (point) => {
        if (!draft) return { from: point, kind: "new" };
        const scale = frame.getBoundingClientRect().width / state.width;
        const [x0, y0, x1, y1] = draft;
        for (const [x, y, ox, oy] of [[x0, y0, x1, y1], [x1, y0, x0, y1], [x0, y1, x1, y0], [x1, y1, x0, y0]])
          if (Math.hypot(point[0] - x, point[1] - y) * scale < HANDLE_PX) return { from: [ox, oy], kind: "size" };
        const inside = point[0] > x0 && point[0] < x1 && point[1] > y0 && point[1] < y1;
        return inside ? { from: point, kind: "move", box: draft } : { from: point, kind: "new" };
      };
      frame.addEventListener("pointerdown", (event) => {
        if (!state.src || event.button > 0) return;
        event.preventDefault();
        frame.focus({ preventScroll: true });
        frame.setPointerCapture(event.pointerId);
        drag = { ...(corner ? { from: corner, kind: "second" } : grip(at(event))), x: event.clientX, y: event.clientY, moved: false };
      });
      frame.addEventListener("pointermove", (event) => {
        if (!drag) return;
        drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
        if (!drag.moved) return;
        const point = at(event);
        if (drag.kind === "move") {
          const dx = clamp(point[0] - drag.from[0], -drag.box[0], state.width - drag.box[2]);
          const dy = clamp(point[1] - drag.from[1], -drag.box[1], state.height - drag.box[3]);
          draft = [drag.box[0] + dx, drag.box[1] + dy, drag.box[2] + dx, drag.box[3] + dy];
        } else {
          draft = span(drag.from, point);
        }
        corner = null;
        drawDraft();
      });
      frame.addEventListener("pointerup", (event) => {
        if (!drag) return;
        const point = at(event);
        const had = Boolean(draft);
        if (drag.kind === "second" && !drag.moved) {
          draft = span(drag.from, point);
          corner = null;
          drag.moved = true;
        } else if (!drag.moved && drag.kind === "new") {
          corner = point; // the first of two corners
          draft = null;
        }
        if (draft && (draft[2] - draft[0] < 1 || draft[3] - draft[1] < 1)) draft = null;
        const done = drag.moved;
        drag = null;
        drawDraft();
        if (done || had !== Boolean(draft)) tell(); // a box that is not seen is not used
      });
      frame.addEventListener("pointercancel", () => {
        if (drag?.moved) tell();
        drag = null;
      });
      frame.addEventListener("keydown", (event) => {
        if (!state.src) return;
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if ((event.key === "Enter" || event.key === " ") && !draft) {
          draft = [state.width / 4, state.height / 4, (3 * state.width) / 4, (3 * state.height) / 4];
        } else if (["Delete", "Backspace", "Escape"].includes(event.key) && (draft || corner)) {
          draft = corner = null;
        } else if (move && draft) {
          const [dx, dy] = [move[0] * STEP * state.width, move[1] * STEP * state.height];
          let [x0, y0, x1, y1] = draft;
          if (event.shiftKey) {
            x1 = clamp(x1 + dx, x0 + 2, state.width);
            y1 = clamp(y1 + dy, y0 + 2, state.height);
          } else {
            const [mx, my] = [clamp(dx, -x0, state.width - x1), clamp(dy, -y0, state.height - y1)];
            [x0, y0, x1, y1] = [x0 + mx, y0 + my, x1 + mx, y1 + my];
          }
          draft = [x0, y0, x1, y1];
        } else {
          return;
        }
        event.preventDefault();
        drawDraft();
        tellLater();
      });
    }
    if (mode === "point") {
      frame.tabIndex = 0;
      frame.setAttribute("role", "application");
      frame.setAttribute("aria-label", "Photo cut in windows: click a patch, or move with the arrow keys");
      frame.addEventListener("click", (event) => {
        if (!state.src) return;
        const [x, y] = at(event);
        trigger("pointed", { x: x / state.width, y: y / state.height });
      });
      frame.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!move || !state.cell) return;
        event.preventDefault();
        const [x0, y0, x1, y1] = state.cell;
        const [dx, dy] = [move[0] * (x1 - x0), move[1] * (y1 - y0)];
        trigger("pointed", {
          x: clamp(((x0 + x1) / 2 + dx) / state.width, 0, 0.999999),
          y: clamp(((y0 + y1) / 2 + dy) / state.height, 0, 0.999999),
        });
      });
    }
    watch(["value"], draw);
    draw();
  };
})();
