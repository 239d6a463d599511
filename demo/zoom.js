// A photo that is zoomed into: its size on the page, and its own pixels where the copy that the page has is too coarse for
// that. No library, nothing from elsewhere; stage.js comes before.
(() => {
  "use strict";
  if (window.owlShared.zooming) return; // every piece brings this script
  const { make, clamp } = window.owlShared;
  const LEAST = 8; // so many times as large as it fits can any photo be, and more until its pixels are seen one by one
  const LONGEST_PX = 100_000; // of a photo on the page
  const BEYOND = 0.15; // of what is in sight is fetched on each side of it
  const REST_MS = 120; // before anything is asked for
  const SLOW_MS = 300; // and so long before the page says that it waits
  const LOST_MS = 30_000; // an answer that has not come by then does not come

  // Tells: "zoomed" {number, box, wide, of}: a box of the photo, in its pixels, how many pixels across are wanted of it,
  // and of which photo. The answer is "part" {number, src, box}, made by part_of in zoom.py.
  window.owlShared.zooming = ({ root, frame, photo, scroll, zooms, props, trigger, watch, value }) => {
    let zoom = 1;
    const fits = () => Math.max(1, Math.max(frame.clientWidth, frame.clientHeight) / zoom);
    const most = () => {
      const { width, height } = value();
      return Math.min(Math.max(LEAST, (2 * Math.max(width, height)) / fits()), Math.max(LEAST, LONGEST_PX / fits()));
    };
    const setZoom = (to, [x, y] = [0.5, 0.5]) => {
      const before = zoom;
      const largest = value().src ? most() : LEAST;
      zoom = clamp(to, 1, largest);
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
      larger.disabled = zoom >= largest;
      later();
    };
    const button = (sign, words, step) => {
      const one = make("button", "", sign);
      one.type = "button";
      one.title = words;
      one.setAttribute("aria-label", words);
      one.addEventListener("click", () => setZoom(zoom * step));
      zooms.append(one);
      return one;
    };
    const said = make("span", "owl-fetching");
    said.setAttribute("role", "status");
    zooms.append(said);
    const smaller = button("−", "Smaller", 1 / 1.5);
    const larger = button("+", "Larger", 1.5);
    smaller.disabled = true;
    scroll.addEventListener("wheel", (event) => {
      if (!event.ctrlKey || !value().src) return; // without it the page scrolls; with it, and by pinching, browsers zoom
      event.preventDefault();
      const place = scroll.getBoundingClientRect();
      const at = [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height];
      setZoom(zoom * Math.exp(-event.deltaY / 300), at);
    }, { passive: false });

    // Two fingers on a photo that one finger draws on move it and make it larger: each call tells whether they do, and so
    // draw nothing, until the last of them is gone.
    const pointers = new Map();
    let pinch = null; // {at, spread, zoom}: where they were, and what they began with
    const pair = () => [...pointers.values()].slice(0, 2);
    const middle = () => { const [[ax, ay], [bx, by]] = pair(); return [(ax + bx) / 2, (ay + by) / 2]; };
    const spread = () => { const [[ax, ay], [bx, by]] = pair(); return Math.max(1, Math.hypot(ax - bx, ay - by)); };
    const fingers = {
      down: (event) => {
        pointers.set(event.pointerId, [event.clientX, event.clientY]);
        if (pointers.size > 1) pinch = { at: middle(), spread: spread(), zoom };
        return Boolean(pinch);
      },
      move: (event) => {
        if (!pointers.has(event.pointerId)) return true;
        pointers.set(event.pointerId, [event.clientX, event.clientY]);
        if (pinch && pointers.size > 1) {
          const [x, y] = middle();
          scroll.scrollLeft -= x - pinch.at[0];
          scroll.scrollTop -= y - pinch.at[1];
          pinch.at = [x, y];
          const place = scroll.getBoundingClientRect();
          const to = clamp((pinch.zoom * spread()) / pinch.spread, 1, most());
          if (Math.abs(to - zoom) > 0.02) setZoom(to, [(x - place.left) / place.width, (y - place.top) / place.height]);
        }
        return Boolean(pinch);
      },
      up: (event) => {
        const did = !pointers.delete(event.pointerId) || Boolean(pinch);
        if (pointers.size > 1) pinch = { at: middle(), spread: spread(), zoom };
        if (!pointers.size) pinch = null;
        return did;
      },
      clear: () => {
        pointers.clear();
        pinch = null;
      },
    };

    // --- Its own pixels ---
    let number = 0;
    let asked = null; // {number, box, density} that no answer came for yet
    let there = null; // {box, density, img} that lies over the copy; img null: it cannot be had
    let resting = 0;
    const later = () => {
      clearTimeout(resting);
      resting = setTimeout(look, REST_MS);
    };
    const waits = (one) => {
      clearTimeout(asked?.slow);
      clearTimeout(asked?.lost);
      said.textContent = "";
      asked = one;
      if (!one) return;
      one.slow = setTimeout(() => { said.textContent = "Fetching its pixels …"; }, SLOW_MS);
      one.lost = setTimeout(() => waits(null), LOST_MS);
    };
    const clear = () => {
      there?.img?.remove();
      there = null;
      frame.removeAttribute("data-sharp");
    };
    // What is in sight, x0 y0 x1 y1, in pixels of the photo.
    const sight = () => {
      const [window_, place] = [scroll.getBoundingClientRect(), frame.getBoundingClientRect()];
      const { width, height } = value();
      const across = (x) => clamp((x - place.left) / place.width, 0, 1) * width;
      const down = (y) => clamp((y - place.top) / place.height, 0, 1) * height;
      const [right, bottom] = [window_.left + scroll.clientWidth, window_.top + scroll.clientHeight];
      return [across(window_.left), down(window_.top), across(right), down(bottom)];
    };
    const covers = (one, [x0, y0, x1, y1], density) =>
      one && one.density >= 0.95 * density && one.box[0] <= x0 + 1 && one.box[1] <= y0 + 1 && one.box[2] >= x1 - 1 && one.box[3] >= y1 - 1;
    const look = () => {
      const { src, reduced, width, height, alt } = value();
      const shown = frame.clientWidth * devicePixelRatio;
      if (!src || !reduced || !frame.clientWidth || !photo.naturalWidth) return;
      if (shown <= 1.05 * photo.naturalWidth) return; // the copy has pixels enough
      const box = sight();
      const density = Math.min(1, shown / width); // pixels of the screen for one of the photo
      if (asked || covers(there, box, density)) return;
      const [x, y] = [BEYOND * (box[2] - box[0]), BEYOND * (box[3] - box[1])];
      const wanted = [Math.max(0, box[0] - x), Math.max(0, box[1] - y), Math.min(width, box[2] + x), Math.min(height, box[3] + y)];
      number += 1;
      waits({ number, box: wanted, density });
      trigger("zoomed", { number, box: wanted, wide: Math.ceil(density * (wanted[2] - wanted[0])), of: [alt, width, height], key: value().key ?? null });
    };
    const lay = (own, src, box) => {
      const { width, height } = value();
      const img = make("img", "owl-sharp");
      img.alt = "";
      img.draggable = false;
      const share = (part, whole) => `${(100 * part) / whole}%`;
      Object.assign(img.style, {
        left: share(box[0], width), top: share(box[1], height),
        width: share(box[2] - box[0], width), height: share(box[3] - box[1], height),
      });
      img.src = src;
      img.decode().then(() => {
        if (own.number !== number) return; // another photo, or another part
        clear();
        photo.after(img);
        there = { box, density: own.density, img };
        frame.dataset.sharp = box.join(" ");
        later(); // it may have been moved meanwhile
      }, () => {});
    };
    watch(["part"], () => {
      const part = JSON.parse(JSON.stringify(props.part || {}));
      if (!asked || part.number !== asked.number) return;
      const own = asked;
      waits(null);
      if (part.src) return lay(own, part.src, part.box);
      clear();
      there = { box: own.box, density: own.density, img: null };
    });
    scroll.addEventListener("scroll", later, { passive: true });
    photo.addEventListener("load", later);
    new ResizeObserver(later).observe(scroll);
    return {
      fingers,
      // A new value: what lies over another photo goes, and that photo is seen whole.
      came: (before) => {
        const now = value();
        const other = ["alt", "width", "height"].some((what) => before[what] !== now[what]);
        if (!now.src || other) setZoom(1);
        if (before.src === now.src && before.width === now.width) return;
        number += 1;
        waits(null);
        clear();
        later();
      },
    };
  };
})();
