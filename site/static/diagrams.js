// Draws the diagrams of a page, in its colours, and again when those change.
// Mermaid is three megabytes: only pages that have a diagram load it.
const diagrams = [...document.querySelectorAll("pre.mermaid")];
const sources = diagrams.map((diagram) => diagram.textContent);

async function draw() {
  const dark = document.documentElement.dataset.theme === "dark";
  mermaid.initialize({
    startOnLoad: false,
    theme: dark ? "dark" : "neutral",
    fontFamily: getComputedStyle(document.body).fontFamily,
    flowchart: { useMaxWidth: true },
  });
  diagrams.forEach((diagram, i) => {
    diagram.removeAttribute("data-processed");
    diagram.textContent = sources[i];
  });
  await document.fonts.ready;
  await mermaid.run({ nodes: diagrams });
  for (const drawn of document.querySelectorAll("pre.mermaid svg")) {
    // On a narrow page it scrolls rather than shrink until no one can read it.
    drawn.style.minWidth = `${Math.min(600, 0.75 * parseFloat(drawn.style.maxWidth))}px`;
  }
}

if (diagrams.length) {
  const script = document.createElement("script");
  const here = document.documentElement.dataset.content_root ?? "./";
  script.src = here + "scripts/mermaid/dist/mermaid.min.js";
  script.onload = () => {
    let shown = document.documentElement.dataset.theme;
    draw();
    new MutationObserver(() => {
      if (document.documentElement.dataset.theme === shown) return;
      shown = document.documentElement.dataset.theme;
      draw();
    }).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  };
  document.head.append(script);
}
