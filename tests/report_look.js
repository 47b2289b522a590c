// What a browser makes of each framed page: its elements, its width, its tips under the keyboard, what is hard to read.
const found = {}, wait = () => new Promise(done => setTimeout(done, 0));
const shade = colour => { const [r, g, b, a] = [...colour.match(/[\d.]+/g).map(Number), 1]; return {r, g, b, a}; };
// relative luminance and contrast as WCAG 2 defines them
const light = c => [c.r, c.g, c.b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
function ground(node) {
  for (; node; node = node.parentElement) {
    const colour = shade(getComputedStyle(node).backgroundColor);
    if (colour.a > .99) return colour;
  }
  return {r: 255, g: 255, b: 255};
}
onload = async () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow, tags = {};
    for (const one of page.querySelectorAll("*")) tags[one.localName] = (tags[one.localName] || 0) + 1;
    const all = [...page.querySelectorAll("*")], out = {tags, title: page.title, width: page.documentElement.scrollWidth, inner: view.innerWidth};
    out.handlers = all.flatMap(one => [...one.attributes].map(a => a.name)).filter(name => name.startsWith("on") || name === "style");
    out.links = [...page.links].map(one => one.getAttribute("href"));
    out.styled = view.getComputedStyle(page.querySelector(".story")).listStyleType;
    out.ground = view.getComputedStyle(page.body).backgroundColor;
    view.focus();
    out.tips = 0; out.outside = [];
    const tokens = [...page.querySelectorAll(".answer .t")];
    for (const token of tokens) {
      token.scrollIntoView({block: "end"});  // where there is no room below
      token.focus({preventScroll: true});
      await wait();
      const tip = token.querySelector(".tip"), box = tip.getBoundingClientRect();
      if (page.activeElement === token && view.getComputedStyle(tip).display === "block") out.tips++;
      if (box.left < 0 || box.right > view.innerWidth || box.top < 0 || box.bottom > view.innerHeight) out.outside.push([box.left, box.top, box.right, box.bottom]);
    }
    out.tokens = tokens.length;
    page.activeElement.blur();
    out.weak = all.filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !one.closest("svg,title,style,.tip,.skip")).map(one => {
      const [a, b] = [light(shade(view.getComputedStyle(one).color)), light(ground(one))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.className || one.localName];
    }).filter(([ratio]) => ratio < 4.5);
    found[frame.id] = out;
  }
  found.owned = window.owned || null;
  document.querySelector("pre").textContent = JSON.stringify(found);
};
