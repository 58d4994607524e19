// ---- A page of several studies has figures and tables, and no answers of its own.
Promise.all([matrices().catch(failed("verdicts")), figures().catch(failed("figures")), tables().catch(failed("pairs"))]).then(() =>
  document.documentElement.setAttribute("data-ready", ""),
);
