// Vectors -> their cosines, as a picture and as a table.

/** @returns {number[][]} the cosine of each with each; of a vector of zeros, 0 */
export function compareAll(vectors) {
  const lengths = vectors.map((vector) => Math.sqrt(dot(vector, vector)));
  return vectors.map((one, row) =>
    vectors.map((other, column) => dot(one, other) / (lengths[row] * lengths[column] || 1)),
  );
}

const dot = (one, other) => one.reduce((sum, number, index) => sum + number * other[index], 0);

/** Draw the matrix; numbers stand in it where they fit. */
export function drawMatrix(canvas, cosines) {
  const [count, dark] = [cosines.length, matchMedia("(prefers-color-scheme: dark)").matches];
  const pen = canvas.getContext("2d");
  const side = canvas.width / Math.max(count, 1);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.font = `${Math.min(20, side / 3.2)}px system-ui, sans-serif`;
  cosines.forEach((row, y) =>
    row.forEach((cosine, x) => {
      const share = Math.max(0, Math.min(1, cosine));
      const light = dark ? 14 + 56 * share : 97 - 62 * share;
      pen.fillStyle = `hsl(210 70% ${light}%)`;
      pen.fillRect(x * side + 1, y * side + 1, side - 2, side - 2);
      if (side < 34) return;
      pen.fillStyle = light > 55 ? "#101418" : "#ffffff";
      pen.fillText(cosine.toFixed(2), (x + 0.5) * side, (y + 0.5) * side);
    }),
  );
  canvas.setAttribute("aria-label", describe(cosines));
}

/** The picture in a sentence. */
export function describe(cosines) {
  const pairs = cosines.flatMap((row, y) => row.slice(0, y).map((cosine, x) => ({ cosine, names: [x + 1, y + 1] })));
  if (!pairs.length) return "One sentence has none to be compared with.";
  pairs.sort((one, other) => other.cosine - one.cosine);
  const say = ({ cosine, names }) => `${names.join(" and ")} (${cosine.toFixed(2)})`;
  return `Cosines of ${cosines.length} sentences: most alike ${say(pairs[0])}, least alike ${say(pairs.at(-1))}.`;
}

/** The same numbers as a table. */
export function fillTable(table, texts, cosines) {
  const cell = (kind, text, scope) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };
  const head = document.createElement("tr");
  head.append(cell("td", ""), ...texts.map((_, index) => cell("th", `${index + 1}`, "col")));
  const rows = cosines.map((row, index) => {
    const line = document.createElement("tr");
    line.append(cell("th", `${index + 1} ${texts[index]}`, "row"), ...row.map((cosine) => cell("td", cosine.toFixed(6))));
    return line;
  });
  table.replaceChildren(head, ...rows);
}
