// ---- Every part on its own: one that fails leaves the others standing.
const parts = [
  figures().catch(failed("figures")),
  layers().catch(failed("compression")),
  tables().catch(failed("verdicts")),
  answers().catch(failed("answers")),
];
Promise.all(parts).then(() => document.documentElement.setAttribute("data-ready", ""));
