"use strict";

// The page is complete without this, which keeps it up to date and finds rows.
const form = document.querySelector("form");
const filter = document.getElementById("filter");
const state = document.getElementById("state");
const period = 10_000; // ms
let asOf = new Date();

function sift() {
  const words = filter.value.toLowerCase().split(/\s+/);
  for (const row of document.querySelectorAll("tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
  filter.hidden = !document.querySelector("tbody");
}

async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch(location.href, {cache: "no-store", signal: AbortSignal.timeout(period - 1000)});
    if (!response.ok) throw new Error(`status ${response.status}`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const main = page.querySelector("main");
    if (!main) throw new Error("another page"); // such as a proxy's, that asks who we are
    const focused = document.activeElement.closest("main a")?.getAttribute("href");
    document.querySelector("main").replaceWith(main);
    document.title = page.title;
    sift();
    [...main.querySelectorAll("a")].find(a => a.getAttribute("href") === focused)?.focus({preventScroll: true});
    asOf = new Date();
    state.textContent = "";
  } catch {
    state.textContent = `The exporter does not answer. This is as of ${asOf.toLocaleTimeString()}.`;
  }
}

filter.addEventListener("input", sift);
sift();
setInterval(refresh, period);
document.addEventListener("visibilitychange", refresh);
addEventListener("pageshow", event => event.persisted && refresh()); // by the Back button
