// ---- Every part on its own: one that fails leaves the others standing.
const parts = [
  matrices().catch(failed("verdicts")),
  figures().catch(failed("figures")),
  layers().catch(failed("compression")),
  tables().catch(failed("verdicts")),
  answers().catch(failed("answers")),
];
Promise.all(parts).then(() => document.documentElement.setAttribute("data-ready", ""));

// Paper cannot unfold what is folded away.
let unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details.more:not([open]), #verdicts details:not([open])")];
  for (const one of unfolded) one.open = true;
});
window.addEventListener("afterprint", () => {
  for (const one of unfolded) one.open = false;
});
