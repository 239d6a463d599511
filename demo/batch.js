// Several photos in a strip, and their answers as one file to fetch. No library, nothing from elsewhere; stage.js and
// camera.js come before.
(() => {
  "use strict";
  if (window.owlBatch) return; // every piece brings this script
  const { make, moveOf, redrawn } = window.owlShared;
  const REST_MS = 200; // between photos that are asked for
  const plain = (value) => JSON.parse(JSON.stringify(value || {}));
  const button = (text, className, action) => {
    const node = make("button", className, text);
    node.type = "button";
    node.addEventListener("click", action);
    return node;
  };
  // A bar with its "Stop", which stays the same while it moves: else a click on it would be lost.
  const progress = (label, stop) => {
    const bar = make("div", "owl-progress");
    Object.entries({ role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 })
      .forEach(([key, value]) => bar.setAttribute(key, value));
    const filled = make("i");
    bar.append(filled);
    const said = make("span", "owl-hint");
    const row = make("div", "owl-batch-bar");
    const end = button("Stop", "owl-stop", stop);
    row.append(bar, said, end);
    row.hidden = true;
    const set = (done, total, text) => {
      const share = Math.round((100 * done) / Math.max(1, total));
      filled.style.width = `${share}%`;
      bar.setAttribute("aria-valuenow", share);
      said.textContent = text;
    };
    return { row, end, set };
  };

  // Tells: "picked" and "removed" {key, name}, "next", "stopped", "cleared". The value is made by strip_of and the marks
  // by marks_of in batch.py.
  window.owlBatch = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-batch");
    const head = make("div", "owl-batch-head");
    const said = make("span", "owl-hint");
    said.setAttribute("role", "status");
    const add = button("Add photos", "", () => window.owlShared.inputOf(props.add)?.click());
    const clear = button("Remove all", "", () => trigger("cleared"));
    head.append(said, add, clear);
    const coming = progress("Photos looked at", () => trigger("stopped"));
    const strip = make("div", "owl-strip");
    strip.setAttribute("role", "group");
    strip.setAttribute("aria-label", "Photos");
    const note = make("p", "owl-hint owl-left-out");
    note.setAttribute("role", "status");
    root.append(head, coming.row, strip, note);
    let asked = null; // the turn of the answer after which the next photo was asked for
    let most = 0; // photos, those to come included
    let items = "";

    const heads = () => [...strip.querySelectorAll(".owl-item > button:first-child")];
    const press = (index) => heads().forEach((one, i) => {
      if (i === index) one.setAttribute("aria-pressed", "true");
      else one.removeAttribute("aria-pressed");
    });
    // At once, as the answer may take a moment; of keys that are held down the last counts.
    let [picked, later] = [0, 0];
    const show = (index) => {
      press(index);
      const { dataset: { key }, title } = heads()[index];
      clearTimeout(later);
      later = setTimeout(() => {
        picked = Date.now();
        trigger("picked", { key, name: title });
      }, Math.max(0, picked + REST_MS - Date.now()));
    };
    const drawItems = (value) => {
      const place = strip.scrollLeft;
      strip.replaceChildren();
      value.items.forEach((item, index) => {
        const holder = make("div", "owl-item");
        const photo = button("", "", () => show(index));
        photo.title = item.title;
        photo.dataset.key = item.key;
        const picture = make("img");
        picture.src = item.src;
        picture.alt = ""; // the caption says it
        photo.append(picture, make("span", "", item.caption), make("em"));
        const remove = button("×", "owl-remove", () => trigger("removed", { key: item.key, name: item.title }));
        remove.setAttribute("aria-label", `Take away: ${item.title}`);
        holder.append(photo, remove);
        strip.append(holder);
      });
      strip.scrollLeft = place;
    };
    const draw = () => {
      const [value, marks] = [plain(props.value), plain(props.marks)];
      const n = value.photos || 0;
      const waiting = value.waiting || 0;
      const many = (value.items || []).length > 0;
      root.classList.toggle("owl-several", many);
      head.hidden = n === 0 && !waiting;
      root.classList.toggle("owl-none", head.hidden && !value.note);
      clear.hidden = !many;
      said.textContent = many && !waiting ? marks.text || "" : "";
      const focused = strip.contains(document.activeElement);
      redrawn(strip, () => {
        if (JSON.stringify(value.items) !== items) {
          items = JSON.stringify(value.items);
          drawItems({ items: value.items || [] });
        }
        heads().forEach((one, i) => { one.querySelector("em").textContent = (marks.badges || [])[i] || "…"; });
        press(marks.chosen);
        const chosen = heads()[marks.chosen];
        if (!chosen || focused) return;
        const [left, right] = [chosen.parentElement.offsetLeft - strip.offsetLeft, strip.clientWidth];
        if (left < strip.scrollLeft || left + chosen.offsetWidth > strip.scrollLeft + right) strip.scrollLeft = left - right / 3;
      });
      note.textContent = value.note || "";
      most = waiting ? Math.max(most, n + (value.coming || 0)) : 0;
      coming.row.hidden = !waiting;
      coming.end.hidden = !value.coming; // photos that are looked at again are all there
      coming.set(most - waiting, most, `${most - waiting} of ${most} photos`);
      if (waiting && value.turn !== asked) trigger("next");
      asked = waiting ? value.turn : null;
    };
    strip.addEventListener("keydown", (event) => {
      const step = moveOf(event)?.[0];
      const all = heads();
      const at = all.findIndex((one) => one.parentElement.contains(event.target));
      if (!step || at < 0 || !all[at + step]) return;
      event.preventDefault();
      all[at + step].focus();
      show(at + step);
    });
    watch(["value", "marks"], draw);
    draw();
  };

  // A file of all answers, in one of several forms. Tells: "zipped" {form}, "stopped". The value is made in batching.py.
  window.owlZips = (element, props, trigger, watch) => {
    const root = element.querySelector(".owl-files");
    let fetched = "";
    const forms = make("div", "owl-zip-row");
    const packing = progress("Packed", () => trigger("stopped"));
    const ready = make("div", "owl-zip-row");
    const draw = () => {
      const value = plain(props.value);
      const there = value.photos > 1;
      root.hidden = !there;
      redrawn(forms, () => {
        forms.replaceChildren(make("span", "", `All ${value.photos} photos as a zip`));
        (value.forms || []).forEach((form) => {
          const one = button(form, "", () => { if (!packing.row.hidden) return; trigger("zipped", { form }); });
          one.setAttribute("aria-disabled", String(Boolean(value.busy))); // and not disabled, which would lose the focus
          forms.append(one);
        });
      });
      packing.row.hidden = !value.busy;
      packing.set(value.done || 0, value.photos, `${value.busy}: ${value.done || 0} of ${value.photos} photos`);
      redrawn(ready, () => {
        ready.replaceChildren();
        if (!value.file) return;
        const link = make("a", "", value.file.orig_name);
        link.href = value.file.url;
        link.download = value.file.orig_name;
        ready.append(make("span", "", "Ready:"), link);
        if (fetched !== value.file.url) link.click();
        fetched = value.file.url;
      });
    };
    root.append(forms, packing.row, ready);
    watch(["value"], draw);
    draw();
  };
})();
