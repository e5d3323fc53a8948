// What is wrong on the open page, as a list of sentences; empty if nothing is.
// `expected` says of each piece (a notebook's cells; one for a Markdown page) how many
// formulas, diagrams and pictures its source has.
async (expected) => {
  const faults = [];
  const all = (piece, what) => [...piece.querySelectorAll(what)];
  const pieces = all(document, ".jp-Notebook .jp-Cell, .jp-MarkdownViewer");
  if (pieces.length !== expected.length)
    return [`${expected.length} pieces in the file, ${pieces.length} on the page`];

  for (const dialog of all(document, ".jp-Dialog"))
    faults.push(`a dialog asks: ${dialog.textContent.trim().slice(0, 300)}`);

  const shows = (img) => img.complete && img.naturalWidth > 0;
  const links = new Map(); // where to -> what a reader sees of it
  pieces.forEach((piece, i) => {
    const fault = (words) => faults.push(`${expected[i].place}: ${words}`);
    const count = (name, found) => {
      if (found !== expected[i][name])
        fault(`${expected[i][name]} ${name} in the source, ${found} on the page`);
    };
    count("formulas", all(piece, "mjx-container").length);
    count("diagrams", all(piece, ".jp-RenderedMermaid img").filter(shows).length);
    count("pictures", all(piece, ".jp-OutputArea img").filter(shows).length);
    // MathJax shows an unknown command in red, and a formula that it cannot read whole.
    for (const error of all(piece, "mjx-merror, mjx-container [style*='color: red']"))
      fault(`maths: ${error.dataset.mjxError ?? error.parentElement.innerHTML}`);
    for (const img of all(piece, "img"))
      if (!shows(img)) fault(`image ${img.getAttribute("src")} is not there`);
    // JupyterLab shows an error as it shows what a program writes to stderr.
    for (const output of all(piece, "[data-mime-type$='.stderr'], [data-mime-type$='.error']"))
      fault(`error or warning: ${output.textContent.trim().slice(0, 300)}`);
    for (const output of all(piece, ".jp-OutputArea-output"))
      if (/^\w+\(children=|Error displaying widget/.test(output.textContent))
        fault(`a widget that is not there: ${output.textContent.slice(0, 100)}`);
    for (const link of all(piece, ".jp-RenderedMarkdown a[href]"))
      links.set(link.getAttribute("href"), { link, fault });
  });

  const heading = (name) => (h) => [h.id, h.dataset.jupyterId].includes(name);
  for (const [address, { link, fault }] of links) {
    if (address.startsWith("#")) {
      const name = decodeURIComponent(address.slice(1));
      if (!all(document, "h1, h2, h3, h4, h5, h6, [id]").some(heading(name)))
        fault(`link to ${address}, which is nowhere on the page`);
    } else if (new URL(link.href).origin === location.origin) {
      // JupyterLab points links to files that it found at the server's copy of them.
      const found = new URL(link.href).pathname.startsWith("/files/");
      if (!found || !(await fetch(link.href, { method: "HEAD" })).ok)
        fault(`link to ${address}, which is not there`);
    }
  }
  return faults;
}
