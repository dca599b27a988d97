"""The HTML template of the report; `report.build_page` fills it in."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title - InfiniteVL</title>
<style>
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --paper: #f6f7f9; --card: #fff;
  --line: #e2e5ea; --state: #2563eb; --growth: #c2410c; --right: #15803d; --wrong: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --paper: #12151b;
  --card: #1b2029; --line: #2d3440; --state: #7aa5ff; --growth: #fb923c;
  --right: #4ade80; --wrong: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .75rem; font-size: 1.05rem; }
.model { margin: .25rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; margin: 1.25rem 0 0; padding: 0;
  list-style: none; color: var(--soft); }
.facts b { color: var(--ink); font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.chart { padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .75rem; }
svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--soft); font-size: 13px; font-variant-numeric: tabular-nums; }
svg text.end { text-anchor: end; } svg text.middle { text-anchor: middle; }
svg text.state { fill: var(--state); font-weight: 600; } svg text.growth { fill: var(--growth); }
svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
svg polyline.state { stroke: var(--state); }
svg polyline.growth { stroke: var(--growth); stroke-width: 1.5; stroke-dasharray: 6 5; }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; margin: 0;
  padding: 0; list-style: none; }
figure { margin: 0; }
img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--line);
  border-radius: .5rem; }
figcaption { margin-top: .25rem; color: var(--soft); font-size: .78rem; font-variant-numeric: tabular-nums; }
.asked { grid-column: 1 / -1; display: grid; grid-template-columns: 9rem 1fr; gap: 1rem; padding: 1rem;
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  box-shadow: inset 4px 0 var(--state); overflow: hidden; }
.talk + .talk { margin-top: .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
.asked p { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.question { color: var(--soft); }
.answer { font-size: 1.1rem; }
.verdict { font-size: .9rem; }
.verdict.right { color: var(--right); } .verdict.wrong { color: var(--wrong); }
.verdict.right::before { content: "✓ "; } .verdict.wrong::before { content: "✗ "; }
@media (max-width: 30rem) { .asked { grid-template-columns: 6rem 1fr; } }
</style>
</head>
<body>
<h1>$title</h1>
<p class="model">watched by $model on $date</p>
<ul class="facts">$facts</ul>
<h2>Memory</h2>
<div class="chart">$chart</div>
<h2>What was seen and asked</h2>
<ol class="moments">$moments</ol>
</body>
</html>
""")
