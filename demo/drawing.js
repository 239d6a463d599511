// A box drawn on a photo by mouse, touch or keys, and a patch that is pointed at. No library, nothing from elsewhere;
// stage.js comes before.
(() => {
  "use strict";
  if (window.owlShared.drawing) return; // every piece brings this script
  const { clamp, span, nudged, moveOf } = window.owlShared;
  const STEP = 0.02; // what an arrow key moves, as a share of the photo
  const HANDLE_PX = 16;

  // One box, drawn anew or moved or sized. Tells: "drawn" {box}.
  window.owlShared.drawing = (stage) => {
    const { frame, svg, labels, trigger, at, rectangle, handle, zoomed } = stage;
    let draft = null; // [x0, y0, x1, y1] in pixels of the photo
    let corner = null; // the first of two clicks
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
    stage.came = (before) => {
      if (before.src !== stage.value.src) drag = null;
      draft = stage.value.draft || null;
      corner = null;
      clearTimeout(later);
      later = 0;
    };
    stage.marked = drawDraft;
    let later = 0; // what keys do is told when they are at rest, and before anything else is done
    const tell = () => {
      clearTimeout(later);
      later = 0;
      trigger("drawn", { box: draft ? draft.map((value) => Math.round(value * 10) / 10) : null, of: stage.of });
    };
    const tellLater = () => { clearTimeout(later); later = setTimeout(tell, 250); };
    frame.addEventListener("blur", () => { if (later) tell(); });
    frame.tabIndex = 0;
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", "Photo to draw a box on: drag, click two corners, or press Enter for a box, arrow keys to move it, Shift with arrow keys to size it, Delete to take it away");
    let drag = null;
    const grip = (point) => {
      if (!draft) return { from: point, kind: "new" };
      const scale = frame.getBoundingClientRect().width / stage.value.width;
      const [x0, y0, x1, y1] = draft;
      for (const [x, y, ox, oy] of [[x0, y0, x1, y1], [x1, y0, x0, y1], [x0, y1, x1, y0], [x1, y1, x0, y0]])
        if (Math.hypot(point[0] - x, point[1] - y) * scale < HANDLE_PX) return { from: [ox, oy], kind: "size" };
      const inside = point[0] > x0 && point[0] < x1 && point[1] > y0 && point[1] < y1;
      return inside ? { from: point, kind: "move", box: draft } : { from: point, kind: "new" };
    };
    frame.addEventListener("pointerdown", (event) => {
      if (!stage.value.src || event.button > 0 || event.ctrlKey) return; // Ctrl with a click opens a menu
      event.preventDefault();
      frame.focus({ preventScroll: true });
      frame.setPointerCapture(event.pointerId);
      if (zoomed.fingers.down(event)) return leave();
      const began = corner ? { from: corner, kind: "second" } : grip(at(event));
      drag = { ...began, x: event.clientX, y: event.clientY, moved: false, before: [draft, corner] };
    });
    // Nothing is drawn after all.
    const leave = () => {
      if (drag) [draft, corner] = drag.before;
      drag = null;
      drawDraft();
    };
    frame.addEventListener("pointermove", (event) => {
      if (zoomed.fingers.move(event) || !drag) return;
      if (!event.buttons) return leave(); // its end was missed
      drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
      if (!drag.moved) return;
      const point = at(event);
      if (drag.kind === "move") {
        draft = nudged(drag.box, [point[0] - drag.from[0], point[1] - drag.from[1]], stage.value);
      } else {
        draft = span(drag.from, point);
      }
      corner = null;
      drawDraft();
    });
    frame.addEventListener("pointerup", (event) => {
      if (zoomed.fingers.up(event) || !drag) return;
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
    frame.addEventListener("pointercancel", (event) => {
      zoomed.fingers.up(event);
      leave();
    });
    frame.addEventListener("keydown", (event) => {
      if (!stage.value.src) return;
      const move = moveOf(event);
      if ((event.key === "Enter" || event.key === " ") && !draft) {
        const { width, height } = stage.value;
        corner = null;
        draft = [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
      } else if (["Delete", "Backspace", "Escape"].includes(event.key) && (draft || corner)) {
        draft = corner = null;
      } else if (move && draft) {
        const by = [move[0] * STEP * stage.value.width, move[1] * STEP * stage.value.height];
        draft = nudged(draft, by, stage.value, event.shiftKey);
      } else {
        return;
      }
      event.preventDefault();
      drawDraft();
      tellLater();
    });
  };

  // A patch, by a click or with the arrow keys. Tells: "pointed" {x, y}, in [0, 1].
  window.owlShared.pointing = (stage) => {
    const { frame, trigger, at } = stage;
    let told = ""; // a key that is held down asks for the same again until the answer is there
    stage.came = () => { told = ""; };
    const point = (x, y) => {
      if (told === `${x} ${y}`) return;
      told = `${x} ${y}`;
      trigger("pointed", { x, y });
    };
    frame.tabIndex = 0;
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", "Photo cut in windows: click a patch, or move with the arrow keys");
    frame.addEventListener("click", (event) => {
      if (!stage.value.src) return;
      const [x, y] = at(event);
      point(x / stage.value.width, y / stage.value.height);
    });
    frame.addEventListener("keydown", (event) => {
      const move = moveOf(event);
      if (!move || !stage.value.cell) return;
      event.preventDefault();
      const [x0, y0, x1, y1] = stage.value.cell;
      const [dx, dy] = [move[0] * (x1 - x0), move[1] * (y1 - y0)];
      point(
        clamp(((x0 + x1) / 2 + dx) / stage.value.width, 0, 0.999999),
        clamp(((y0 + y1) / 2 + dy) / stage.value.height, 0, 0.999999),
      );
    });
  };
})();
