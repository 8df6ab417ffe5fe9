/**
 * The sample X-rays that the server comes with.
 *
 * @typedef {object} Sample
 * @property {string} path file name
 * @property {string} label the true one
 * @property {string} content what the image is, in a sentence
 * @property {string} source
 * @property {string} licence
 * @property {string} attribution
 */

/**
 * Fetch all samples.
 *
 * @param {import("./api.js").Api} api
 * @returns {Promise<{given: import("./images.js").Given[], samples: Sample[]}>} in the same order
 */
export async function fetchSamples(api) {
  /** @type {Sample[]} */
  const samples = await (await api.request("samples")).json();
  const given = await Promise.all(
    samples.map(async ({ path }) => {
      const content = await (await api.request(`samples/${encodeURIComponent(path)}`)).blob();
      return { file: new File([content], path, { type: content.type }), name: path };
    }),
  );
  return { given, samples };
}
