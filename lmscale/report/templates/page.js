for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = value(a), y = value(b);
        if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// Points that tell their run: under the pointer, and with arrow keys in a figure that has the focus.
const note = document.createElement("div");
note.className = "note";
note.setAttribute("role", "status");
note.hidden = true;
document.body.append(note);
let shown = null;
function show(point) {
  if (shown) shown.classList.remove("current");
  shown = point;
  note.hidden = !point;
  if (!point) return;
  point.classList.add("current");
  note.textContent = point.dataset.note;
  const at = point.getBoundingClientRect();
  const left = Math.min(at.right + 10, innerWidth - note.offsetWidth - 12);
  const above = at.top - note.offsetHeight - 8;
  note.style.left = `${scrollX + Math.max(8, left)}px`;
  note.style.top = `${scrollY + (above > 0 ? above : at.bottom + 8)}px`;
}
for (const plate of document.querySelectorAll(".plate")) {
  const points = [...plate.querySelectorAll(".point")];
  if (!points.length) continue;
  plate.addEventListener("pointerover", (event) => show(event.target.closest(".point")));
  plate.addEventListener("pointerleave", () => show(null));
  plate.addEventListener("blur", () => show(null));
  plate.addEventListener("keydown", (event) => {
    const here = points.indexOf(shown);
    const steps = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: Math.max(here, 1) - 1, ArrowUp: Math.max(here, 1) - 1, Home: 0, End: points.length - 1 };
    if (event.key === "Escape") show(null);
    else if (event.key in steps && !event.altKey && !event.ctrlKey && !event.metaKey) show(points[Math.min(steps[event.key], points.length - 1)]);
    else return;
    event.preventDefault();
  });
}

// A page that is kept fresh loads itself again, and stays where it is read: at the heading above the
// reader, with its tables sorted and scrolled as they were.
const reload = Number(document.body.dataset.reload);
const place = "lmscale-place";
if (reload) {
  const anchors = () => [...document.querySelectorAll("[id]")].filter((one) => one.closest("main"));
  const sheets = () => [...document.querySelectorAll(".sheet")];
  const remember = () => {
    const above = anchors().filter((one) => one.getBoundingClientRect().top <= 1).pop();
    const sorted = [...document.querySelectorAll("th[aria-sort]")].map((th) => [th.cellIndex, th.getAttribute("aria-sort")]);
    return {
      id: above && above.id,
      offset: above ? above.getBoundingClientRect().top : -scrollY,
      sheets: sheets().map((one) => [one.scrollLeft, one.scrollTop]),
      sorted,
    };
  };
  const restore = ({ id, offset, sheets: scrolled, sorted }) => {
    for (const [column, order] of sorted) {
      const button = document.querySelectorAll("table.sortable thead button")[column];
      if (button) { button.click(); if (order === "descending") button.click(); }
    }
    sheets().forEach((one, k) => { if (scrolled[k]) [one.scrollLeft, one.scrollTop] = scrolled[k]; });
    const anchor = id && document.getElementById(id);
    scrollTo({ top: scrollY + (anchor ? anchor.getBoundingClientRect().top : 0) - offset, behavior: "instant" });
  };
  try {
    const kept = sessionStorage.getItem(place);
    sessionStorage.removeItem(place);
    if (kept) { history.scrollRestoration = "manual"; restore(JSON.parse(kept)); }
  } catch { /* A browser without storage reloads at its own place. */ }
  setInterval(() => {
    // Not under a reader's hands.
    if (document.hidden || String(getSelection()) || document.querySelector("main :focus-visible")) return;
    try { sessionStorage.setItem(place, JSON.stringify(remember())); } catch { /* As above. */ }
    location.reload();
  }, 1000 * reload);
}
