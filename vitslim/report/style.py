"""The look of the pages: one sheet, in light, dark and on paper."""

STYLE_SHEET = """
:root {
  color-scheme: light dark;
  --paper: #fcfbf8; --raised: #ffffff; --ink: #1f2428; --soft: #5d656c; --rule: #dfdcd3; --faint: #eeece5;
  --accent: #9a4f10; --band: #f6e9d8; --good: #1b7249; --bad: #b3372a; --even: #5d656c;
  --dense: #e6eaee; --dense-edge: #aab4bd; --reuse: #f8e3c8; --reuse-edge: #c98a43;
  --sparse: #e6e0f5; --sparse-edge: #9484c7; --sliced: #d9ecdf; --sliced-edge: #74ab87; --other: #f3f3f3;
  --first: #3f6c9b; --second: #c4833a; --shares: #6b5cae;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --raised: #1c2024; --ink: #e7e5e0; --soft: #a2a9b0; --rule: #343a40; --faint: #24292e;
    --accent: #eaa860; --band: #33291d; --good: #6cc99b; --bad: #f08a7b; --even: #a2a9b0;
    --dense: #2a3138; --dense-edge: #56626d; --reuse: #47331c; --reuse-edge: #b98042;
    --sparse: #322c4a; --sparse-edge: #7d6fb3; --sliced: #21382a; --sliced-edge: #5a8e6c; --other: #2a2a2a;
    --first: #7ba7d4; --second: #e0a35c; --shares: #a99be0;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 1048px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 3.2rem; }
h1, h2 { font-family: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "Liberation Serif", serif;
  font-weight: 600; line-height: 1.2; letter-spacing: -.01em; margin: 0; }
h1 { font-size: 2.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.55rem; padding-top: 2.6rem; margin-bottom: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
p { max-width: 70ch; margin: .5rem 0 1rem; }
.eyebrow { margin: 0 0 .4rem; color: var(--soft); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; }
.lead { font-size: 1.15rem; max-width: 62ch; margin: .9rem 0 1.6rem; }
.absent { color: var(--soft); border-left: 3px solid var(--rule); padding-left: .8rem; }
.note { color: var(--soft); font-size: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .even { color: var(--even); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .86em; }
code { background: var(--faint); padding: .1em .35em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: var(--faint); padding: 1rem 1.1rem; border-radius: 6px; overflow-x: auto; line-height: 1.5; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--rule); }
nav ul { max-width: 1048px; margin: 0 auto; padding: .65rem 24px; display: flex; gap: .3rem 1.5rem; list-style: none;
  overflow-x: auto; white-space: nowrap; font-size: .9rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: 3px; }
nav a { text-decoration: none; color: var(--soft); }
nav a:hover, nav a:focus-visible { color: var(--ink); text-decoration: underline; }
section { margin-top: 2.2rem; }
main section:first-child { margin-top: 0; }
main section:first-child h2 { border-top: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px; margin: 1.6rem 0 2.4rem;
  padding: 0; list-style: none; }
.cards li { background: var(--raised); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem 1.1rem; }
.cards .what { display: block; min-height: 2.6em; line-height: 1.3; color: var(--soft); font-size: .85rem; }
.cards .figure { display: block; font-size: 1.7rem; line-height: 1.25; font-weight: 600; margin: .15rem 0 .35rem;
  letter-spacing: -.01em; white-space: nowrap; }
.cards .absent-figure { color: var(--soft); font-weight: 400; font-size: 1.15rem; line-height: 2.1rem; }
.cards .detail { display: block; font-size: .88rem; line-height: 1.45; }
figure { margin: 1.2rem 0 1.6rem; min-width: 0; }
figcaption { margin-bottom: .5rem; font-size: .92rem; }
figcaption span { display: block; color: var(--soft); font-size: .88rem; max-width: 70ch; }
.row { display: grid; gap: 0 24px; }
.three { grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); }
.two { grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); }
.scroll { overflow-x: auto; }
svg { display: block; max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .4rem 0 1.4rem; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding-bottom: .45rem; }
caption span { display: block; position: sticky; left: 0; width: max-content; max-width: min(1000px, 100vw - 48px); }
th, td { text-align: left; font-weight: 400; padding: .36rem .8rem .36rem 0; border-bottom: 1px solid var(--faint);
  vertical-align: baseline; }
thead th { color: var(--soft); font-size: .84rem; border-bottom: 1px solid var(--rule); vertical-align: bottom;
  line-height: 1.3; }
.number { text-align: right; white-space: nowrap; padding-left: .8rem; padding-right: 0; }
thead .number { white-space: normal; min-width: 4.2em; }
tbody th { font-weight: 500; white-space: nowrap; }
.facts th { white-space: normal; width: 34%; color: var(--soft); font-weight: 400; }
.facts th, .facts td { padding-top: .18rem; padding-bottom: .18rem; font-size: .85rem; }
.facts td { overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; padding: 0; margin: .2rem 0 1rem; list-style: none;
  font-size: .87rem; color: var(--soft); }
.spot { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: .5em; vertical-align: -2px;
  border: 1px solid transparent; }
i.tokens { height: 5px; vertical-align: 3px; background: var(--first); }
i.sharing { height: 0; border: 0; border-top: 2px dashed var(--shares); border-radius: 0; vertical-align: 4px;
  width: 20px; }
i.marked { border: 2px solid #ff5a36; }
i.scale { display: inline-block; width: 140px; height: 12px; margin: 0 .3em; vertical-align: -1px; border-radius: 2px; }
td small { display: block; color: var(--soft); font-size: .85em; }
.narrow-only { display: none; }
footer { color: var(--soft); font-size: .85rem; padding-top: 2.6rem; padding-bottom: 3rem; }

svg text { fill: var(--ink); font-family: inherit; font-size: 12px; }
svg .tick { fill: var(--soft); font-size: 11px; }
svg .name { fill: var(--soft); font-size: 11.5px; }
svg .label { font-size: 12.5px; }
svg .marked-text { fill: var(--accent); font-weight: 700; }
svg .marked { fill: none; stroke: #ff5a36; stroke-width: 2.2; }
svg .undefined { fill: var(--faint); stroke: var(--rule); stroke-width: .5; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .band { fill: var(--band); }
svg .first { fill: var(--first); } svg .second { fill: var(--second); } svg .bar { fill: var(--first); }
svg .curve { fill: none; stroke: var(--first); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .curve-end { fill: var(--first); }
svg .baseline { stroke: var(--ink); stroke-width: 1.4; }
svg .speed-faster { fill: var(--good); } svg .speed-slower { fill: var(--bad); }
svg .speed-even, svg .speed-too-noisy { fill: var(--even); }
svg .value-faster { fill: var(--good); } svg .value-slower { fill: var(--bad); }
svg .value-even, svg .value-too-noisy { fill: var(--even); }
svg .whisker { stroke: var(--ink); stroke-width: 1.2; }
svg .slower-side { fill: var(--faint); }
svg .front { fill: none; stroke: var(--soft); stroke-width: 1.3; stroke-dasharray: 4 4; }
svg .haloed { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .leader { stroke: var(--soft); stroke-width: .8; }
svg .point { fill: var(--first); stroke: var(--paper); stroke-width: 1.5; }
svg .point-dense { fill: var(--ink); stroke: var(--paper); stroke-width: 1.5; }
.step-dense { fill: var(--dense); stroke: var(--dense-edge); background: var(--dense);
  border-color: var(--dense-edge); }
.step-reuse { fill: var(--reuse); stroke: var(--reuse-edge); background: var(--reuse);
  border-color: var(--reuse-edge); }
.step-sparse { fill: var(--sparse); stroke: var(--sparse-edge); background: var(--sparse);
  border-color: var(--sparse-edge); }
.step-sliced { fill: var(--sliced); stroke: var(--sliced-edge); background: var(--sliced);
  border-color: var(--sliced-edge); }
.step-other { fill: var(--other); stroke: var(--soft); background: var(--other); border-color: var(--soft); }
svg .step-number { font-size: 14px; font-weight: 700; }
svg .step-kind { font-size: 12px; }
svg .step-detail { font-size: 10px; fill: var(--soft); }
svg .stream { stroke: var(--soft); stroke-width: 1.2; }
svg .reuse-line { fill: none; stroke: var(--reuse-edge); stroke-width: 1.6; }
svg .arrow { fill: var(--reuse-edge); }
svg .sharing { fill: none; stroke: var(--shares); stroke-width: 1.6; stroke-dasharray: 4 3; }
svg .tokens { fill: var(--first); } svg .tokens-all { fill: none; stroke: var(--dense-edge); stroke-width: .6; }

@media (max-width: 640px) {
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 1.8rem; }
  nav ul { padding-left: 16px; padding-right: 16px; }
  h1 { font-size: 1.7rem; }
  .two, .three { grid-template-columns: minmax(0, 1fr); }
  .wide-only { display: none; }
  .narrow-only { display: block; }
  svg .tick, svg .name { font-size: 13.5px; }
  svg .label { font-size: 14px; }
  nav { position: static; }
  nav ul { flex-wrap: wrap; }
  tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); padding-right: .5rem; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --raised: #fff; }
  body { font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; }
  header, main, footer { max-width: none; padding: 0; }
  h1 { font-size: 20pt; } h2 { font-size: 14pt; break-after: avoid; } h3 { break-after: avoid; }
  section { margin-top: 1.4rem; }
  figure, tr, .cards li, pre { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  .scroll { overflow: visible; }
}
""".strip()
