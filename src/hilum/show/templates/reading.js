"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const state = { at: 0, window: "lung", heat: true, spot: data.first };
  const byId = (id) => document.getElementById(id);
  const slider = byId("slider");
  const planes = ["axial", "coronal", "sagittal"];
  const pane = {};
  for (const plane of planes) {
    const figure = byId("pane-" + plane);
    pane[plane] = {
      stage: figure.querySelector(".stage"),
      grey: figure.querySelector(".grey"),
      heat: figure.querySelector(".heat"),
      cross: figure.querySelector(".cross"),
      level: figure.querySelector(".level"),
    };
  }
  const picks = Array.from(document.querySelectorAll(".pick"));
  const nearest = (k) => {
    let best = 0;
    data.slices.forEach((s, i) => {
      if (Math.abs(s.k - k) < Math.abs(data.slices[best].k - k)) best = i;
    });
    return best;
  };
  const layer = (image, source) => {
    if (source) {
      image.src = source;
      image.hidden = false;
    } else {
      image.hidden = true;
      image.removeAttribute("src");
    }
  };
  const place = (group, point) => {
    group.setAttribute("visibility", point ? "visible" : "hidden");
    if (point) group.setAttribute("transform", "translate(" + point[0] + " " + point[1] + ")");
  };
  const label = (slice) => {
    const parts = ["z " + slice.z.toFixed(1) + " mm"];
    if (slice.slice !== undefined) parts.push(words.slice_index + " " + slice.slice);
    if (slice.image !== undefined && slice.image !== null) parts.push(words.image + " " + slice.image);
    return parts.join(" · ");
  };
  const draw = () => {
    const spot = data.spots[state.spot];
    const slice = data.slices[state.at];
    const heat = state.heat ? spot.heat : {};
    pane.axial.grey.src = data.grey[state.window][state.at];
    layer(pane.axial.heat, heat.axial && heat.axial[slice.k]);
    for (const plane of ["coronal", "sagittal"]) {
      pane[plane].grey.src = spot.cuts[plane][state.window];
      layer(pane[plane].heat, heat[plane]);
      place(pane[plane].level, [0, (data.z.count - 0.5 - slice.k) * data.z.step_mm]);
    }
    const chosen = state.spot !== "centre";
    for (const plane of planes) {
      const seen = chosen && (plane !== "axial" || slice.k === spot.k);
      place(pane[plane].cross, seen ? spot.cross[plane] : null);
    }
    slider.value = state.at;
    slider.setAttribute("aria-valuetext", label(slice));
    byId("position").textContent = label(slice);
    byId("w-lung").setAttribute("aria-pressed", state.window === "lung");
    byId("w-soft").setAttribute("aria-pressed", state.window === "soft");
    byId("toggle").setAttribute("aria-pressed", state.heat);
    const row = document.querySelector('button.pick[data-finding="' + state.spot + '"]');
    byId("chosen").textContent = chosen && row ? row.textContent : words.overview;
    for (const button of picks) {
      const on = button.dataset.finding === state.spot;
      button.setAttribute("aria-pressed", on);
      const line = button.closest("tr");
      if (line) line.classList.toggle("chosen", on);
    }
  };
  const go = (at) => {
    state.at = Math.max(0, Math.min(data.slices.length - 1, at));
    draw();
  };
  const choose = (key) => {
    state.spot = key;
    state.window = data.spots[key].window;
    go(nearest(data.spots[key].k));
  };
  slider.max = data.slices.length - 1;
  slider.addEventListener("input", () => go(Number(slider.value)));
  byId("w-lung").addEventListener("click", () => { state.window = "lung"; draw(); });
  byId("w-soft").addEventListener("click", () => { state.window = "soft"; draw(); });
  byId("toggle").addEventListener("click", () => { state.heat = !state.heat; draw(); });
  for (const button of picks) {
    button.addEventListener("click", () => {
      choose(button.dataset.finding);
      document.querySelector(".viewer").scrollIntoView({ block: "nearest" });
    });
  }
  pane.axial.stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    go(state.at + (event.deltaY > 0 ? -1 : 1));
  }, { passive: false });
  for (const plane of ["coronal", "sagittal"]) {
    pane[plane].stage.addEventListener("click", (event) => {
      const box = pane[plane].stage.getBoundingClientRect();
      const share = (event.clientY - box.top) / box.height;
      go(nearest(Math.round(data.z.count - 0.5 - share * data.z.count)));
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const order = Array.from(new Set(picks.map((button) => button.dataset.finding)));
    const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in steps) go(state.at + steps[key]);
    else if (key === "w") { state.window = state.window === "lung" ? "soft" : "lung"; draw(); }
    else if (key === "m") { state.heat = !state.heat; draw(); }
    else if (key === "n" && order.length) choose(order[(order.indexOf(state.spot) + 1) % order.length]);
    else return;
    event.preventDefault();
  });
  choose(data.first);
})();
