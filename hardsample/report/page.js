"use strict";
// Filters, sorts and opens what is already in the page; no markup is built from text, and nothing is fetched.

const theme = document.getElementById("theme");
theme.addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

for (const list of document.querySelectorAll("[data-list]")) {
  const holder = list.querySelector("[data-items]");
  const items = [...holder.children];
  const words = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const filters = [...list.querySelectorAll("[data-filter]")];
  const search = list.querySelector("[data-search]");
  const sort = list.querySelector("[data-sort]");
  const descending = list.querySelector("[data-descending]");
  const byId = new Intl.Collator(undefined, { numeric: true });

  const shown = () => [...holder.children].filter((item) => !item.hidden);

  const update = () => {
    const wanted = search.value.trim().toLowerCase();
    for (const item of items) {
      item.hidden = filters.some((filter) => filter.value && filter.value !== item.dataset[filter.dataset.filter]) ||
        !words.get(item).includes(wanted);
    }
    const key = "by" + sort.value[0].toUpperCase() + sort.value.slice(1);
    const sign = descending.checked ? -1 : 1;
    const order = (first, second) => {
      if (sort.value !== "id") {
        const [a, b] = [first.dataset[key], second.dataset[key]];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // without a value: last
        if (a !== b) return sign * (a - b);
      }
      return sign * byId.compare(first.dataset.id, second.dataset.id);
    };
    holder.append(...items.toSorted(order));
    const count = shown().length;
    list.querySelector("[data-count]").textContent = count === 1 ? "1 sample" : `${count} samples`;
    list.querySelector("[data-empty]").hidden = count > 0;
  };

  const step = (item, by) => {
    const all = shown();
    const next = all[(all.indexOf(item) + by + all.length) % all.length];
    item.querySelector("dialog").close();
    next.querySelector("dialog").showModal();
  };

  for (const control of [...filters, search, sort, descending]) control.addEventListener("input", update);
  holder.addEventListener("click", (event) => {
    const item = event.target.closest("[data-items] > *");
    const dialog = item?.querySelector("dialog");
    if (!dialog) return;
    if (event.target.closest("[data-open]")) dialog.showModal();
    else if (event.target.closest("[data-close]") || event.target === dialog) dialog.close();
    else if (event.target.closest("[data-step]")) step(item, Number(event.target.closest("[data-step]").dataset.step));
  });
  holder.addEventListener("keydown", (event) => {
    const dialog = event.target.closest("dialog[open]");
    if (dialog && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      event.preventDefault();
      step(dialog.closest("[data-items] > *"), event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  update();
}
