/**
 * The threshold explorer of a report: shows what was measured at one threshold of the grid, and converts it to
 * the prevalence that the reader sets. Without this script the table of operating points remains.
 */
"use strict";

(() => {
  const byId = (id) => document.getElementById(`explorer-${id}`);
  const data = JSON.parse(byId("data").textContent);
  const { thresholds, groups } = data;
  const PER = 1000; // patients
  const HEIGHT = 40; // of the curves' view box
  const SPOKEN_MS = 600; // a moving slider is announced where it rests

  const select = byId("group");
  const slider = byId("threshold");
  const field = byId("prevalence");
  let group = groups[0];
  /** Share of patients with the target; null for that of the images. @type {number | null} */
  let prevalence = null;
  let timer = 0;

  /** Three decimals; a tie goes to the even digit, as everywhere in the report. Ties are odd sixteenths. */
  function fixed(value) {
    if (value === null) return "–";
    const scaled = Math.floor(value * PER);
    const tie = Math.abs(value * 16) % 2 === 1;
    return (tie && scaled % 2 === 0 ? scaled / PER : value).toFixed(3);
  }

  const span = (low, high) => (low === null || high === null ? "" : `${fixed(low)} to ${fixed(high)}`);
  const ratio = (part, whole) => (whole > 0 ? part / whole : null);
  /** With as many digits as tell it from 0 and from 1. */
  const asThreshold = (value) => {
    if (value > 0 && value < 1e-9) return value.toExponential(1);
    const nearest = Math.min(value, 1 - value);
    if (nearest > 0 && nearest < 0.00005) return value.toFixed(1 - Math.floor(Math.log10(nearest)));
    return value.toFixed(value < 0.001 || value > 0.999 ? 4 : 3);
  };
  const asPercent = (share) => String(Number((share * 100).toFixed(1)));

  function patients(count) {
    if (count < 9.95) return Math.max(0, count).toFixed(1);
    const up = Math.round(count);
    return String(count % 1 === 0.5 && up % 2 ? up - 1 : up);
  }

  const many = (count) => count.toLocaleString("en");

  /** By Bayes' theorem, from a prevalence of one half to another. */
  function converted(half, share) {
    return half === null ? null : ratio(half * share, half * share + (1 - half) * (1 - share));
  }

  /** What was measured of the chosen group at a threshold, at the chosen prevalence. */
  function measured(at) {
    const { positive, negative, ends } = group;
    const [tp, fp] = [group.found[at], group.alarms[at]];
    const [fn, tn] = [positive - tp, negative - fp];
    const own = positive / (positive + negative);
    const share = prevalence ?? own;
    const sensitivity = ratio(tp, positive);
    const specificity = ratio(tn, negative);
    const defined = sensitivity !== null && specificity !== null;
    const [found, alarms] = defined ? [share * sensitivity, (1 - share) * (1 - specificity)] : [null, null];
    const [missed, cleared] = defined ? [share - found, 1 - share - alarms] : [null, null];
    const interval = (name, scale, convert = (end) => end) =>
      ends[name].map((side) => (side[at] === null ? null : convert(side[at] / scale)));
    return {
      counts: { tp, fp, fn, tn },
      share,
      values: {
        sensitivity,
        specificity,
        // Counted where the prevalence is that of the images: no rounding on the way.
        ppv: prevalence === null ? ratio(tp, tp + fp) : defined ? ratio(found, found + alarms) : null,
        npv: prevalence === null ? ratio(tn, tn + fn) : defined ? ratio(cleared, cleared + missed) : null,
      },
      intervals: {
        sensitivity: interval("sensitivity", PER),
        specificity: interval("specificity", PER),
        ppv: interval("ppv", 1, (end) => converted(end, share)),
        npv: interval("npv", 1, (end) => converted(end, 1 - share)),
      },
      outcome: { found, alarms, missed, cleared },
    };
  }

  function show() {
    const at = Number(slider.value);
    const now = measured(at);
    const setting = settingWords(at, now.share);
    byId("setting").textContent = `${setting}.`;
    for (const [name, value] of Object.entries(now.values)) {
      byId(name).textContent = fixed(value);
      const words = span(...now.intervals[name]);
      byId(`${name}-interval`).textContent = words ? `95% interval ${words}` : "";
    }
    for (const [name, count] of Object.entries(now.counts)) byId(name).textContent = many(count);
    showPatients(now);
    slider.setAttribute("aria-valuetext", asThreshold(thresholds[at]));
    for (const button of byId("points").children) {
      button.setAttribute("aria-pressed", String(group.points[button.dataset.point] === at));
      button.disabled = group.points[button.dataset.point] === null;
      button.title = button.disabled ? "Its threshold depends on the population: choose one under Images" : "";
    }
    byId("own").disabled = prevalence === null;
    byId("curves").querySelector(".at").setAttribute("d", `M${place(at)} 0V${HEIGHT}`);
    clearTimeout(timer);
    timer = setTimeout(() => announce(now), SPOKEN_MS);
  }

  function showPatients({ outcome, intervals, share }) {
    const { found, alarms, missed, cleared } = outcome;
    const put = (id, value) => {
      byId(id).textContent = value === null ? "–" : patients(value * PER);
    };
    for (const [name, value] of Object.entries(outcome)) {
      put(name, value);
      byId("thousand").querySelector(`.${name}`).style.flex = String(value ?? 0);
    }
    put("referred", found === null ? null : found + alarms);
    put("kept", missed === null ? null : missed + cleared);
    // Each is a fixed number of patients times a rate, or one minus the rate.
    const ends = ([low, high], whole, complement) => {
      if (low === null || high === null) return "";
      const both = complement ? [1 - high, 1 - low] : [low, high];
      return both.map((end) => patients(Math.max(0, end) * whole * PER)).join(" to ");
    };
    byId("found-interval").textContent = ends(intervals.sensitivity, share, false);
    byId("missed-interval").textContent = ends(intervals.sensitivity, share, true);
    byId("alarms-interval").textContent = ends(intervals.specificity, 1 - share, true);
    byId("cleared-interval").textContent = ends(intervals.specificity, 1 - share, false);
  }

  function settingWords(at, share) {
    const point = data.points.find((name) => group.points[name] === at);
    const images = `${group.name}: ${many(group.positive + group.negative)} images of ${many(group.patients)} patients`;
    const named = point ? ` (${point})` : "";
    const origin = prevalence === null ? ", that of these images" : "";
    return `Threshold ${asThreshold(thresholds[at])}${named}; prevalence ${asPercent(share)}%${origin}; ${images}`;
  }

  function announce({ values, outcome }) {
    const said = (name) => `${name} ${fixed(values[name.toLowerCase()])}`;
    const rates = ["Sensitivity", "Specificity", "PPV", "NPV"].map(said).join(", ");
    const { found, alarms, missed } = outcome;
    const of = found === null ? "" : ` Of 1,000 patients ${patients((found + alarms) * PER)} referred, ${patients(missed * PER)} missed.`;
    byId("status").textContent = `${rates}.${of}`;
  }

  const place = (at) => (100 * at) / (thresholds.length - 1);

  /** Draw both rates over the slider, with their intervals as bands. */
  function draw() {
    const { positive, negative, ends, found, alarms } = group;
    const rates = {
      first: ["sensitivity", found.map((count) => ratio(count, positive))],
      second: ["specificity", alarms.map((count) => ratio(negative - count, negative))],
    };
    const point = (value, at) => `${place(at).toFixed(2)} ${((1 - value) * HEIGHT).toFixed(2)}`;
    for (const [name, [key, values]] of Object.entries(rates)) {
      const line = values.includes(null) ? "" : `M${values.map(point).join("L")}`;
      // No interval, as where every resample agrees: the band is as narrow as the line there.
      const [low, high] = ends[key].map((side) => side.map((end, at) => (end === null ? values[at] : end / PER)));
      const closed = low.map(point).reverse();
      const band = line && `M${high.map(point).join("L")}L${closed.join("L")}Z`;
      byId("curves").querySelector(`.line.${name}`).setAttribute("d", line);
      byId("curves").querySelector(`.band.${name}`).setAttribute("d", band);
    }
  }

  function chooseGroup() {
    group = groups[Number(select.value)];
    if (prevalence === null) showOwnPrevalence();
    draw();
    show();
  }

  function showOwnPrevalence() {
    prevalence = null;
    field.value = asPercent(group.positive / (group.positive + group.negative));
    byId("prevalence-note").textContent = "";
  }

  function readPrevalence() {
    const given = field.valueAsNumber;
    const valid = given >= 0.1 && given <= 99.9;
    field.setAttribute("aria-invalid", String(!valid));
    byId("prevalence-note").textContent = valid ? "" : "Give a prevalence from 0.1 to 99.9%.";
    if (!valid) return;
    prevalence = given / 100;
    show();
  }

  for (const [index, { name }] of groups.entries()) select.add(new Option(name, String(index)));
  for (const name of data.points) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: name });
    button.dataset.point = name;
    button.addEventListener("click", () => {
      slider.value = String(group.points[name]);
      show();
    });
    byId("points").append(button);
  }
  slider.max = String(thresholds.length - 1);
  byId("lowest").textContent = asThreshold(thresholds[0]);
  byId("highest").textContent = asThreshold(thresholds.at(-1));
  slider.value = String(data.start);
  select.addEventListener("change", chooseGroup);
  slider.addEventListener("input", show);
  field.addEventListener("input", readPrevalence);
  byId("own").addEventListener("click", () => {
    field.removeAttribute("aria-invalid");
    showOwnPrevalence();
    show();
    field.focus();
  });
  document.getElementById("explorer").hidden = false;
  chooseGroup();
})();
