"use strict";
(() => {
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const search = document.getElementById("search");
  const only = document.getElementById("only");
  const status = document.getElementById("status");
  const count = document.getElementById("count");
  const rest = status.textContent;

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const changed = only.getAttribute("aria-pressed") === "true";
    let shown = 0;
    for (const row of all("[data-text]")) {
      const match = words.every((word) => row.dataset.text.includes(word));
      row.hidden = !match || (changed && row.dataset.changed === "no");
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? shown + " rows match" : "";
    for (const box of all("details[data-searched]")) {
      if (words.length) box.open = Boolean(box.querySelector("[data-text]:not([hidden])"));
    }
  }

  function together(groups) {
    const wanted = groups ? groups.split(" ") : [];
    for (const row of all("[data-groups]")) {
      const mine = row.dataset.groups.split(" ");
      row.classList.toggle("together", wanted.some((group) => mine.includes(group)));
    }
  }

  function show(row) {
    together(row ? row.dataset.groups : "");
    status.textContent = row ? row.dataset.about : rest;
  }

  function step(row, offset) {
    const rows = all(".bars li:not([hidden])");
    const next = rows[rows.indexOf(row) + offset];
    if (next) next.focus();
  }

  search.addEventListener("input", filter);
  only.addEventListener("click", () => {
    only.setAttribute("aria-pressed", String(only.getAttribute("aria-pressed") !== "true"));
    filter();
  });
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  for (const row of all("[data-groups]")) {
    row.addEventListener("mouseenter", () => show(row));
    row.addEventListener("mouseleave", () => show(null));
    row.addEventListener("focus", () => show(row));
    row.addEventListener("blur", () => show(null));
    row.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        step(row, event.key === "ArrowDown" ? 1 : -1);
      }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      filter();
    }
  });
  only.setAttribute("aria-pressed", String(Boolean(document.querySelector('.bars [data-changed="yes"]'))));
  filter();
  document.body.dataset.ready = "yes";
})();
