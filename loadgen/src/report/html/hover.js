// Reads points out under the pointer. The plots are drawn without it.
"use strict";
for (const svg of document.querySelectorAll("svg.plot")) {
  const tip = svg.parentElement.querySelector(".tip");
  const cursor = svg.querySelector(".cursor");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const series = [...svg.querySelectorAll("path[data-text], path[data-bars]")].map((path) => {
    const bars = path.dataset.bars !== undefined;
    const numbers = path.getAttribute("d").match(/[\d.]+/g) || [];
    // A line has "x y" for each point, a bar "left base top right base".
    const each = bars ? 5 : 2;
    const at = [];
    for (let n = 0; n + each <= numbers.length; n += each) {
      at.push(bars ? (Number(numbers[n]) + Number(numbers[n + 3])) / 2 : Number(numbers[n]));
    }
    return { name: path.dataset.name, at, texts: (bars ? path.dataset.bars : path.dataset.text).split("|") };
  });
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("hidden", "");
  };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    let nearest = null;
    const rows = [];
    for (const { name, at, texts } of series) {
      let best = -1;
      for (let n = 0; n < at.length; n++) {
        if (best < 0 || Math.abs(at[n] - x) < Math.abs(at[best] - x)) best = n;
      }
      if (best < 0) continue;
      if (nearest === null || Math.abs(at[best] - x) < Math.abs(nearest - x)) nearest = at[best];
      rows.push(`${name}: ${texts[best]}`);
    }
    if (nearest === null) return hide();
    tip.replaceChildren(
      ...rows.map((row) => {
        const line = document.createElement("div");
        line.textContent = row;
        return line;
      }),
    );
    tip.hidden = false;
    const left = nearest < width / 2;
    tip.style.left = left ? `${(nearest / width) * 100 + 2}%` : "auto";
    tip.style.right = left ? "auto" : `${(1 - nearest / width) * 100 + 2}%`;
    for (const [name, value] of [["x1", nearest], ["x2", nearest], ["y1", 12], ["y2", height - 54]]) {
      cursor.setAttribute(name, value);
    }
    cursor.removeAttribute("hidden");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
