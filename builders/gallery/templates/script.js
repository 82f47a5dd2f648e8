(() => {
  "use strict";

  const views = JSON.parse(document.getElementById("data").textContent);
  const cards = [...document.querySelectorAll("article")];
  const codec = document.getElementById("codec");
  const level = document.getElementById("level");
  const told = document.getElementById("told");

  const element = (name, kind, text) => {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const picture = (slot, address, alt) => {
    let image = slot.querySelector("img");
    if (!image) {
      image = element("img");
      image.decoding = "sync";
      slot.replaceChildren(image);
    }
    image.src = address;
    image.alt = alt;
  };

  const bars = (slot, answers) => {
    const list = element("ul", "bars");
    for (const [label, share, text, right] of answers) {
      const row = element("li", right ? "right" : "");
      const length = element("i");
      length.style.width = `${100 * share}%`;
      row.append(length, element("span", "", right ? `\u2713 ${label}` : label), element("span", "", text));
      list.append(row);
    }
    slot.replaceChildren(list);
  };

  const fill = (card, name, drawing, alt, text) => {
    const figure = card.querySelector(`[data-slot="${name}"]`);
    if (!figure) return;
    const slot = figure.querySelector(".shown");
    if (drawing && drawing.text) slot.replaceChildren(element("blockquote", "", drawing.text));
    else if (!drawing) slot.textContent = "no picture";
    else if (drawing.picture) picture(slot, drawing.picture, alt);
    else bars(slot, drawing.bars);
    const span = figure.querySelector("figcaption span");
    if (span) span.textContent = text || "";
  };

  const still = (view, card) => {
    const score = view.original.figures[0].join(" ");
    fill(card, "truth", view.truth, "Ground truth");
    fill(card, "original", view.original.drawing, "From the original feature", score);
    fill(card, "colours", { picture: view.original.colours }, "Tokens of the original");
  };

  const moving = (view, card, place) => {
    const versions = view.codecs[codec.value];
    const version = versions && versions[Math.min(place, versions.length - 1)];
    const figures = card.querySelector("dl");
    const decoded = version && (version.input || version.text) && { picture: version.input, text: version.text };
    card.querySelector('[data-slot="decoded"]').hidden = !decoded;
    card.querySelectorAll('[data-slot="compressed"], [data-slot="altered"], [data-slot="errors"]').forEach((figure) => {
      figure.hidden = !version;
    });
    figures.replaceChildren();
    if (!version) {
      figures.append(element("dt", "", "This codec has no feature of this source."));
      return null;
    }
    const what = `level ${version.level}`;
    fill(card, "compressed", version.drawing, `From the compressed feature, ${what}`, version.figures[0].join(" "));
    fill(card, "decoded", decoded, `Decoded input at ${what}`);
    fill(card, "altered", { picture: version.colours }, `Tokens at ${what}`);
    fill(card, "errors", { picture: version.errors }, `Token errors at ${what}`);
    for (const [name, value] of [["level", version.level], ["setting", version.setting], ...version.figures]) {
      const row = element("div");
      row.append(element("dt", "", name), element("dd", "", value));
      figures.append(row);
    }
    return version.level;
  };

  const show = () => {
    const lengths = views.map((view) => (view.codecs[codec.value] || []).length);
    level.max = Math.max(...lengths) - 1;
    const levels = views.map((view, n) => moving(view, cards[n], Number(level.value)));
    const found = Math.max(...levels.filter((at) => at !== null));
    told.textContent = `${found}`;
    level.setAttribute("aria-valuetext", `level ${found}`);
  };

  views.forEach((view, n) => still(view, cards[n]));
  codec.addEventListener("input", show);
  level.addEventListener("input", show);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
    level.value = Number(level.value) + step;
    show();
  });
  show();
})();
