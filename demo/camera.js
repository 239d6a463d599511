// A picture, or a short video, from the camera of the browser. It goes the way of a file that was chosen, and the camera
// goes off. No library, nothing from elsewhere; stage.js comes before.
(() => {
  "use strict";
  if (window.owlCamera) return; // every piece brings this script
  const { make } = window.owlShared;
  const RECORDED_S = 20;
  const KINDS = ["video/mp4;codecs=avc1.42E01E", "video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm"];
  const WRONG = {
    NotAllowedError: "The browser may not use the camera. Allow it for this page in the browser’s settings, then try again.",
    NotFoundError: "There is no camera on this machine.",
    NotReadableError: "The camera does not start; perhaps another program uses it.",
  };

  // Gradio puts the input of an upload button before the button.
  window.owlShared.inputOf = (id) => {
    let node = id ? document.getElementById(id) : null;
    while (node && !node.matches("input[type=file]")) node = node.previousElementSibling;
    return node;
  };
  window.owlShared.giveFiles = (id, files) => {
    const input = window.owlShared.inputOf(id);
    if (!input) return;
    const transfer = new DataTransfer();
    files.forEach((file) => transfer.items.add(file));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const stamp = () => {
    const now = new Date();
    const local = new Date(now - now.getTimezoneOffset() * 60000).toISOString();
    return `${local.slice(0, 10)} ${local.slice(11, 19).replaceAll(":", ".")}`;
  };

  window.owlCamera = (element, props) => {
    const root = element.querySelector(".owl-camera");
    if (!navigator.mediaDevices?.getUserMedia || (props.record && !window.MediaRecorder)) return;
    const button = (text, className, action) => {
      const node = make("button", className, text);
      node.type = "button";
      node.addEventListener("click", action);
      return node;
    };
    let stream = null;
    let turn = 0; // of starting and closing: what an older one brings is let go
    let cameras = [];
    let recorder = null;
    const view = make("video");
    Object.assign(view, { autoplay: true, muted: true, playsInline: true });
    view.setAttribute("aria-label", "What the camera sees");
    const said = make("p", "owl-hint");
    said.setAttribute("role", "status");
    const open = button(props.record ? "Record with the camera" : "Use the camera", "owl-open", () => start());
    open.setAttribute("aria-expanded", "false");
    const take = button(props.record ? "Start recording" : "Take the picture", "owl-take", () => (props.record ? record() : snap()));
    const other = button("Other camera", "", () => start(cameras[(cameras.indexOf(current()) + 1) % cameras.length]));
    const close = button("Close the camera", "", () => stop());
    const buttons = make("div", "owl-camera-buttons");
    buttons.append(take, other, close);
    const panel = make("div", "owl-camera-panel");
    panel.append(view, said, buttons);
    panel.hidden = true;
    root.append(open, panel);

    const current = () => stream?.getVideoTracks()[0]?.getSettings().deviceId;
    const release = () => {
      if (recorder && recorder.state !== "inactive") {
        recorder.ondataavailable = recorder.onstop = null;
        recorder.stop();
      }
      recorder = null;
      stream?.getTracks().forEach((track) => { track.onended = null; track.stop(); });
      stream = null;
      view.srcObject = null;
    };
    const stop = (why = "") => {
      turn += 1;
      const focused = panel.contains(document.activeElement);
      release();
      take.disabled = true;
      said.textContent = why;
      view.hidden = buttons.hidden = Boolean(why);
      panel.hidden = !why;
      open.hidden = false;
      open.setAttribute("aria-expanded", "false");
      if (focused) open.focus();
    };
    const start = async (device) => {
      const mine = ++turn;
      release();
      open.hidden = true;
      open.setAttribute("aria-expanded", "true");
      panel.hidden = view.hidden = buttons.hidden = false;
      take.disabled = true;
      take.textContent = props.record ? "Start recording" : "Take the picture";
      other.hidden = cameras.length < 2;
      close.focus();
      said.textContent = "The camera starts; the browser may ask whether it may.";
      try {
        const wanted = { width: { ideal: props.record ? 1280 : 1920 }, height: { ideal: props.record ? 720 : 1080 } };
        const which = device ? { deviceId: { exact: device } } : { facingMode: { ideal: "environment" } };
        const fresh = await navigator.mediaDevices.getUserMedia({ video: { ...wanted, ...which }, audio: false });
        if (mine !== turn) return fresh.getTracks().forEach((track) => track.stop());
        stream = fresh;
        // A recorder ends with its camera, and what it has is used.
        stream.getVideoTracks()[0].onended = () => { if (!recorder) stop("The camera went off."); };
        view.srcObject = stream;
        await view.play();
        const found = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
        if (mine !== turn) return;
        cameras = found.map((one) => one.deviceId);
        other.hidden = cameras.length < 2;
        said.textContent = props.record ? `At most ${RECORDED_S} seconds.` : "";
        take.disabled = false;
        take.focus();
      } catch (error) {
        if (mine === turn) stop(WRONG[error.name] || `The camera does not start (${error.name}).`);
      }
    };
    const snap = () => {
      const canvas = make("canvas");
      [canvas.width, canvas.height] = [view.videoWidth, view.videoHeight];
      if (!canvas.width) return;
      take.disabled = true; // a second click takes no second picture
      canvas.getContext("2d").drawImage(view, 0, 0);
      canvas.toBlob((blob) => {
        stop();
        if (blob) window.owlShared.giveFiles(props.upload, [new File([blob], `camera ${stamp()}.jpg`, { type: "image/jpeg" })]);
      }, "image/jpeg", 0.95);
    };
    const record = () => {
      if (recorder) return recorder.stop();
      const type = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
      const parts = [];
      let one;
      try {
        one = new MediaRecorder(stream, type ? { mimeType: type } : {});
        one.start();
      } catch (error) {
        return stop(`The camera does not record (${error.name}).`);
      }
      recorder = one;
      one.ondataavailable = (event) => parts.push(event.data);
      one.onstop = () => {
        const kind = (one.mimeType || "video/webm").split(";")[0];
        stop();
        const name = `camera ${stamp()}.${kind === "video/mp4" ? "mp4" : "webm"}`;
        window.owlShared.giveFiles(props.upload, [new File(parts, name, { type: kind })]);
      };
      other.hidden = true;
      take.textContent = "Stop and use it";
      const until = Date.now() + 1000 * RECORDED_S;
      const count = () => {
        if (recorder !== one || one.state === "inactive") return;
        const left = Math.ceil((until - Date.now()) / 1000);
        if (left <= 0) return one.stop();
        said.textContent = `Recording; ${left} s left.`;
        setTimeout(count, 250);
      };
      count();
    };
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !panel.hidden) stop();
    });
    // The camera goes off with the tab that it is in, also one that only starts, and with the page.
    new ResizeObserver(() => { if (!panel.hidden && root.offsetParent === null) stop(); }).observe(root);
    addEventListener("pagehide", () => { if (!panel.hidden) stop(); });
  };
})();
