// What family.json says, as the page needs it: profiles that give floats, and the URL of a file by its digest.

const FLOAT = "float32";
/** The least memory and time first; the page shows them in this order. */
const PRECISIONS = ["int8", "int8-static", "q8", "q4-mixed", "q4", "fp16", "fp32"];

/** @param {object} manifest the content of family.json */
export function readFamily(manifest) {
  if (!manifest.text) throw new Error("This family takes no texts; the page compares sentences.");
  const profiles = Object.entries(manifest.profiles)
    .map(([name, facts]) => ({ name, encoding: FLOAT, ...facts }))
    .filter((profile) => profile.encoding === FLOAT);
  if (!profiles.length) throw new Error("This family's profiles give codes; the page compares vectors of floats.");
  const capacity = {};
  for (const profile of profiles) {
    capacity[profile.weights] = Math.max(capacity[profile.weights] ?? 0, profile.weights_prefix_bytes);
  }
  return {
    profiles,
    capacity,
    text: { cuts: "right", special_tokens: true, unpooled: null, full: false, chat: null, ...manifest.text },
    output: manifest.output ?? "sentence_embedding",
    parent: manifest.parent.source,
    url: (name) => `family/${encodeURIComponent(name)}?sha256=${manifest.files[name].sha256}`,
    has: (name) => name in manifest.files,
  };
}

/**
 * Where a graph says that its weights lie: the path from its own folder on. Packs for other programs have both in onnx/.
 *
 * @param {{graph: string, weights: string}} profile
 */
export function locateWeights(profile) {
  const folder = profile.graph.slice(0, profile.graph.lastIndexOf("/") + 1);
  return profile.weights.startsWith(folder) ? profile.weights.slice(folder.length) : profile.weights;
}

/** The profile to begin with: the one that needs the fewest bytes, and of those the widest. */
export function findFirst(profiles) {
  const rank = (profile) => [profile.weights_prefix_bytes, -profile.dim, PRECISIONS.indexOf(profile.precision)];
  return profiles.toSorted((one, other) => compare(rank(one), rank(other)))[0];
}

export function listPrecisions(profiles) {
  return PRECISIONS.filter((precision) => profiles.some((profile) => profile.precision === precision));
}

/** The depths that there are in a precision, ascending. */
export function listLayers(profiles, precision) {
  return ascend(profiles.filter((profile) => profile.precision === precision).map((profile) => profile.layers));
}

/** The dims that there are at a depth, ascending. */
export function listDims(profiles, precision, layers) {
  const fits = (profile) => profile.precision === precision && profile.layers === layers;
  return ascend(profiles.filter(fits).map((profile) => profile.dim));
}

/** The place of what is nearest to a number in an ascending list. */
export function findNearest(numbers, wanted) {
  let best = 0;
  numbers.forEach((number, place) => {
    if (Math.abs(number - wanted) < Math.abs(numbers[best] - wanted)) best = place;
  });
  return best;
}

const ascend = (numbers) => [...new Set(numbers)].sort((one, other) => one - other);

function compare(one, other) {
  const place = one.findIndex((number, index) => number !== other[index]);
  return place < 0 ? 0 : one[place] - other[place];
}
