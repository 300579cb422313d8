"use strict";
// Tables sort by a column's data-v, else by its text; what is undefined stays last in both directions.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "descending" : "ascending");
      const numeric = head.classList.contains("num");
      const value = (row) => {
        const cell = row.cells[column];
        if (numeric) return cell.dataset.v === undefined ? NaN : Number(cell.dataset.v);
        return cell.dataset.v ?? cell.textContent;
      };
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!numeric) return (up ? -1 : 1) * x.localeCompare(y, "en", { numeric: true });
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return up ? y - x : x - y;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
for (const box of document.querySelectorAll(".code")) {
  const pre = box.querySelector("pre");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = "Copied";
    } catch {
      // some browsers keep the clipboard from pages opened as files: select the text instead
      getSelection().selectAllChildren(pre);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  box.append(button);
}
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((a) => a.removeAttribute("aria-current"));
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
document.querySelectorAll("main > section").forEach((section) => watch.observe(section));

// a summary is printed as it is open; everything means every fold
for (const button of document.querySelectorAll("[data-print]")) {
  button.addEventListener("click", () => {
    const folded = button.dataset.print ? [...document.querySelectorAll("details:not([open], .data)")] : [];
    folded.forEach((fold) => (fold.open = true));
    print();
    folded.forEach((fold) => (fold.open = false));
  });
}
const unfold = () => {
  const fold = document.getElementById(location.hash.slice(1))?.querySelector(".fold");
  if (fold) fold.open = true;
};
addEventListener("hashchange", unfold);
unfold();
