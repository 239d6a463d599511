// Boxes on a photo that are moved, sized, named, drawn and taken away by mouse, touch or keys, so that what leaves the
// page is an annotation. No library, nothing from elsewhere; stage.js comes before.
(() => {
  "use strict";
  if (window.owlShared.editing) return; // every piece brings this script
  const { make, span, nudged, moveOf } = window.owlShared;
  const STEP = 0.01; // what an arrow key moves, as a share of what is seen of the photo
  const HANDLE_PX = 14;
  const SMALLEST_PX = 3; // of the screen: what is drawn smaller was a click
  const WAIT_MS = 10_000; // how long an answer of the server may take before what it shows counts again
  // Where the handles of a box are: shares of its width and height.
  const HANDLES = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]];
  const HELP = "Drag a box to move it, its handles to size it; drag beside it for a new one. Keys: Page Up and Page Down choose, arrows move, Shift with arrows sizes, Enter makes a box, Delete takes it away, Ctrl+Z undoes, Escape lets go.";

  // Tells: "edited" {edits}, each {number, was, now} with boxes {label, box, hand}: was null is a new one, now null one
  // that goes; or {number, undo: true}, or {number, reset: true}. The value that answers has the number of the last one in
  // "edited". What is told at once may come in another order: so each telling holds all that no answer has heard of yet.
  window.owlShared.editing = (stage) => {
    const { root, frame, svg, labels, scroll, zooms, trigger, at, rectangle, handle, zoomed } = stage;
    let on = false;
    let chosen = null; // the mark itself, one of stage.value.boxes
    let drag = null;
    let armed = false; // the next drag makes a box wherever it begins
    let unsent = null; // {was, now} of keys that are still pressed
    let [sent, sentAt] = [0, 0];
    let unheard = []; // what was told and no answer has heard of

    // --- The row below the photo ---
    const button = (words, title, action) => {
      const one = make("button", "", words);
      one.type = "button";
      if (title) one.title = title;
      one.addEventListener("click", action);
      return one;
    };
    const toggle = button("Edit boxes", "", () => turn(!on));
    toggle.className = "owl-edit-toggle";
    const bar = make("div", "owl-edits");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Edit boxes");
    const name = make("input", "owl-edit-name");
    Object.assign(name, { type: "text", maxLength: 200, placeholder: "name of the box", autocomplete: "off" });
    name.setAttribute("aria-label", "Name of the box that is chosen, or drawn next");
    const known = make("datalist");
    known.id = `${stage.id}-names`;
    name.setAttribute("list", known.id);
    const fresh = button("New box", "The next drag draws a box, also inside another", () => arm(!armed));
    const remove = button("Delete", "Take the chosen box away", () => take());
    const undo = button("Undo", "Take back the last edit", () => tell({ undo: true }));
    const reset = button("As found", "Take back all edits", () => tell({ reset: true }));
    const said = make("p", "owl-hint");
    said.setAttribute("aria-live", "polite");
    bar.append(name, known, fresh, remove, undo, reset, said);
    zooms.prepend(toggle);
    zooms.after(bar);

    const boxes = () => stage.value.boxes || [];
    const describe = () => {
      if (!chosen) return [armed ? "Drag on the photo, or press Enter on it, for a new box." : HELP];
      const place = boxes().indexOf(chosen) + 1;
      const by = chosen.hand ? "by hand" : `score ${chosen.score.toFixed(2)}`;
      const where = `, ${place} of ${boxes().length}, ${by}: ${chosen.box.map(Math.round).join(", ")}`;
      return [make("bdi", "", chosen.label), where];
    };
    const behind = () => (stage.value.edited ?? 0) < sent || Boolean(unsent);
    const showBar = () => {
      frame.setAttribute("aria-busy", String(behind())); // downloads are of the server's answer
      root.classList.toggle("owl-editing", on);
      toggle.setAttribute("aria-pressed", String(on));
      fresh.setAttribute("aria-pressed", String(armed));
      remove.disabled = !chosen;
      undo.disabled = !stage.value.undo;
      reset.disabled = !stage.value.edits;
      const names = [...new Set(stage.value.names || [])];
      known.replaceChildren(...names.map((one) => Object.assign(make("option"), { value: one })));
      if (document.activeElement !== name) name.value = chosen ? chosen.label : name.value || names[0] || "";
      const words = make("p");
      words.append(...describe());
      if (said.textContent !== words.textContent) said.replaceChildren(...words.childNodes); // it is read out
    };
    const turn = (to) => {
      on = to;
      [chosen, armed, drag] = [null, false, null];
      zoomed.fingers.clear();
      if (on) frame.tabIndex = 0;
      else frame.removeAttribute("tabindex");
      for (const [key, value] of [["role", "application"], ["aria-label", `Photo with boxes to edit. ${HELP}`]])
        if (on) frame.setAttribute(key, value);
        else frame.removeAttribute(key);
      stage.redraw();
    };
    const arm = (to) => {
      armed = to;
      if (armed) choose(null);
      else stage.redraw();
      frame.focus({ preventScroll: true });
    };
    const choose = (mark) => {
      send();
      chosen = mark;
      if (mark) [armed, name.value] = [false, mark.label];
      stage.redraw();
    };

    // --- What is told ---
    const plain = (mark) => mark && { label: mark.label, box: mark.box.map((x) => Math.round(x * 100) / 100), hand: mark.hand || null };
    const tell = (what) => {
      if (!what.was && !what.now) send();
      [sent, sentAt] = [Math.max(sent, stage.value.edited ?? 0) + 1, Date.now()];
      unheard.push({ number: sent, was: null, now: null, undo: false, reset: false, ...what });
      showBar();
      trigger("edited", { edits: [...unheard], of: stage.of });
    };
    const send = () => {
      if (!unsent) return;
      const { was, now } = unsent;
      clearTimeout(unsent.later);
      unsent = null;
      tell({ was: plain(was), now: plain(now) });
    };
    // The mark is replaced on the page at once; the server is told now, or when the keys are at rest.
    const put = (was, now, later = 0) => {
      if (!later || (unsent && unsent.now !== was)) send();
      const all = boxes();
      const mark = now && { ...now, score: null, patch: null, outline: was && String(was.box) === String(now.box) ? was.outline : "", hand: was?.hand || `h${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}` };
      if (mark) {
        const names = stage.value.names || [];
        mark.query = names.includes(mark.label) ? names.indexOf(mark.label) : names.length;
        if (mark.query === names.length) stage.value.names = [...names, mark.label];
      }
      if (was) all.splice(all.indexOf(was), 1, ...(mark ? [mark] : []));
      else all.push(mark);
      stage.value.boxes = all;
      chosen = mark;
      if (unsent) clearTimeout(unsent.later);
      unsent = { was: unsent ? unsent.was : was, now: mark };
      if (later) unsent.later = setTimeout(send, later);
      else send();
      stage.redraw();
    };
    const take = () => {
      if (!chosen) return;
      const next = boxes().indexOf(chosen);
      send();
      put(chosen, null);
      chosen = boxes()[Math.min(next, boxes().length - 1)] || null;
      stage.redraw();
    };
    const wanted = () => name.value.trim() || (stage.value.names || [])[0] || "object";
    name.addEventListener("change", () => {
      if (chosen && name.value.trim() && name.value.trim() !== chosen.label) put(chosen, { ...chosen, label: name.value.trim() });
    });
    name.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return; // one that ends the writing of a sign ends no name
      event.preventDefault();
      frame.focus({ preventScroll: true }); // which makes it "change"
    });

    // --- What the server shows, which may be older than what was done here ---
    // The same box in what is shown now, whose marks are new with each answer.
    const again = (mark) => boxes().find((one) =>
      mark.hand ? one.hand === mark.hand : !one.hand && one.label === mark.label && String(one.box) === String(mark.box)) || null;
    stage.held = () => Boolean(drag);
    stage.came = (before) => {
      const now = stage.value;
      if (!now.src) turn(false);
      const same = before.key === now.key;
      unheard = unheard.filter((one) => one.number > (now.edited ?? 0));
      if (same && behind() && Date.now() - sentAt < WAIT_MS + (unsent ? WAIT_MS : 0)) {
        [now.boxes, now.names] = [before.boxes, before.names];
        return;
      }
      unheard = [];
      if (!same) [chosen, unsent] = [null, null];
      if (chosen) chosen = again(chosen);
    };
    stage.marked = () => {
      showBar();
      if (on) drawDraft();
    };
    // A drag draws this alone: there may be a thousand other marks.
    const drawDraft = () => {
      svg.querySelectorAll(".owl-draft, .owl-draft-under, .owl-chosen").forEach((node) => node.remove());
      labels.querySelectorAll(".owl-handle").forEach((node) => node.remove());
      if (drag?.box) rectangle(drag.box, "owl-draft-under") && rectangle(drag.box, "owl-draft");
      const box = drag?.box || chosen?.box;
      if (!box) return;
      if (!drag?.box) rectangle(box, "owl-chosen");
      const [x0, y0, x1, y1] = box;
      HANDLES.forEach(([x, y]) => labels.append(handle([x0 + x * (x1 - x0), y0 + y * (y1 - y0)])));
    };

    // --- Mouse and touch ---
    const scale = () => frame.getBoundingClientRect().width / stage.value.width;
    const inside = ([x, y], [x0, y0, x1, y1], room = 0) => x >= x0 - room && x <= x1 + room && y >= y0 - room && y <= y1 + room;
    const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
    const grip = (point) => {
      if (armed) return { kind: "new" };
      if (chosen) {
        const [x0, y0, x1, y1] = chosen.box;
        const near = HANDLES.map(([x, y]) => Math.hypot(point[0] - x0 - x * (x1 - x0), point[1] - y0 - y * (y1 - y0)) * scale());
        const best = near.indexOf(Math.min(...near));
        if (near[best] < HANDLE_PX) return { kind: "size", handle: HANDLES[best], mark: chosen };
        if (inside(point, chosen.box)) return { kind: "move", mark: chosen };
      }
      const mark = smallest(point);
      return mark ? { kind: "move", mark } : { kind: "new" };
    };
    const smallest = (point) => boxes().filter((one) => inside(point, one.box, 4 / scale())).sort((a, b) => area(a.box) - area(b.box))[0] || null;
    const sized = ([x0, y0, x1, y1], [hx, hy], [x, y]) =>
      span([hx === 0 ? x : x0, hy === 0 ? y : y0], [hx === 1 ? x : x1, hy === 1 ? y : y1]);
    frame.addEventListener("pointerdown", (event) => {
      if (!on || !stage.value.src || event.button > 0 || event.ctrlKey) return; // Ctrl with a click opens a menu
      event.preventDefault();
      frame.focus({ preventScroll: true });
      frame.setPointerCapture(event.pointerId);
      if (zoomed.fingers.down(event)) return leave();
      const point = at(event);
      drag = { ...grip(point), from: point, x: event.clientX, y: event.clientY, moved: false };
    });
    frame.addEventListener("pointermove", (event) => {
      if (zoomed.fingers.move(event) || !drag) return;
      if (!event.buttons) return leave(); // its end was missed
      drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4;
      if (!drag.moved) return;
      const point = at(event);
      if (drag.kind === "move") drag.box = nudged(drag.mark.box, [point[0] - drag.from[0], point[1] - drag.from[1]], stage.value);
      else drag.box = drag.kind === "size" ? sized(drag.mark.box, drag.handle, point) : span(drag.from, point);
      drawDraft();
    });
    const leave = () => {
      drag = null;
      stage.draw(); // what came meanwhile
    };
    const end = (event) => {
      if (zoomed.fingers.up(event) || !drag) return;
      const { kind, mark, box, moved, from } = drag;
      const of = String(stage.of);
      leave();
      if (String(stage.of) !== of) return; // it was drawn on the photo before
      if (!moved) return choose(armed ? null : pickNext(from));
      if (Math.min(box[2] - box[0], box[3] - box[1]) * scale() < SMALLEST_PX) return stage.redraw();
      armed = false;
      if (kind === "new") {
        choose(null);
        put(null, { label: wanted(), box });
        if (event.pointerType === "mouse") name.select();
      } else {
        put(again(mark), { ...mark, box });
      }
    };
    // Of boxes that lie over each other a click chooses the smallest, and the next click the next.
    const pickNext = (point) => {
      const here = boxes().filter((one) => inside(point, one.box, 4 / scale())).sort((a, b) => area(a.box) - area(b.box));
      return here[(here.indexOf(chosen) + 1) % Math.max(1, here.length)] || null;
    };
    // The box that a row of the table is about, which may be of an answer before.
    const chooseIn = ({ owlMark: { mark, of } }) => choose(of === stage.of ? again(mark) : null);
    frame.addEventListener("pointerup", end);
    frame.addEventListener("pointercancel", (event) => {
      zoomed.fingers.up(event);
      if (drag) leave();
    });
    frame.addEventListener("blur", () => send()); // what keys did, before anything else is done
    root.addEventListener("click", (event) => {
      const row = on && event.target.closest(".owl-table tbody tr");
      if (row && !event.target.closest("button")) chooseIn(row);
    });

    root.addEventListener("keydown", (event) => {
      if (!on || event.key !== "Enter" || !event.target.matches(".owl-table tbody tr")) return;
      event.preventDefault();
      chooseIn(event.target);
    });

    // --- Keys ---
    const keys = (event) => {
      const move = moveOf(event);
      const turned = { PageDown: 1, PageUp: -1 }[event.key];
      if (move && chosen) {
        const seen = Math.min(scroll.clientWidth / frame.clientWidth, 1) * STEP;
        const by = [move[0] * seen * stage.value.width, move[1] * seen * stage.value.width];
        put(chosen, { ...chosen, box: nudged(chosen.box, by, stage.value, event.shiftKey) }, 400);
      } else if (turned && boxes().length) {
        const place = chosen ? boxes().indexOf(chosen) + turned : turned > 0 ? 0 : -1;
        choose(boxes().at(place % boxes().length));
        svg.querySelector(".owl-chosen")?.scrollIntoView({ block: "nearest", inline: "nearest" });
      } else if ((event.key === "Delete" || event.key === "Backspace") && chosen) {
        take();
      } else if (event.key === "Enter" && chosen) {
        name.select();
      } else if (event.key === "Enter") {
        armed = false;
        put(null, { label: wanted(), box: centre() });
      } else if (event.key === "Escape" && (chosen || armed)) {
        armed = false;
        choose(null);
      } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) {
        if (stage.value.undo || unsent || unheard.length) tell({ undo: true });
      } else {
        return false;
      }
      return true;
    };
    // The middle quarter of what is seen of the photo.
    const centre = () => {
      const [a, b] = [scroll.getBoundingClientRect(), frame.getBoundingClientRect()];
      const seen = [Math.max(a.left, b.left), Math.max(a.top, b.top), Math.min(a.right, b.right), Math.min(a.bottom, b.bottom)];
      const [x0, y0, x1, y1] = [...at({ clientX: seen[0], clientY: seen[1] }), ...at({ clientX: seen[2], clientY: seen[3] })];
      return [(5 * x0 + 3 * x1) / 8, (5 * y0 + 3 * y1) / 8, (3 * x0 + 5 * x1) / 8, (3 * y0 + 5 * y1) / 8];
    };
    frame.addEventListener("keydown", (event) => {
      if (!on || !stage.value.src || !keys(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    showBar();
  };
})();
