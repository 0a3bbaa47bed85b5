"""The page's style sheet, for light and dark screens and for paper."""

# From "none chosen" to "all chosen", in eleven steps: grey to blue.
_LIGHT = (188, 193, 201), (16, 92, 191)
_DARK = (84, 91, 102), (102, 178, 255)


def _steps(pair):
  (a, b) = pair
  lines = []
  for i in range(11):
    mixed = [round(x + (y - x) * i / 10) for x, y in zip(a, b, strict=True)]
    lines.append(f'.s{i}{{fill:rgb({mixed[0]},{mixed[1]},{mixed[2]})}}')
  return ''.join(lines)


STYLE = f"""
:root {{
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f5f6f8; --line: #dcdfe4; --text: #1c2126;
  --soft: #5c6570; --all: #c3c8d0; --kept: #105cbf; --warn: #9a5a00;
  --warn-ground: #fff4e0; --heat: 16, 92, 191;
}}
{_steps(_LIGHT)}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #14171b; --panel: #1d2127; --line: #343a43; --text: #e8eaed;
    --soft: #9aa4b0; --all: #545b66; --kept: #66b2ff; --warn: #ffc46b;
    --warn-ground: #33270f; --heat: 102, 178, 255;
  }}
  {_steps(_DARK)}
}}
* {{ box-sizing: border-box }}
body {{
  margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px;
  background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}}
h1 {{ font-size: 26px; line-height: 1.2; margin: 0 0 4px }}
h2 {{ font-size: 19px; margin: 40px 0 6px }}
h3 {{ font-size: 15px; margin: 18px 0 6px }}
p {{ margin: 4px 0 12px; max-width: 76ch }}
.soft, figcaption {{ color: var(--soft) }}
.tiles {{
  display: grid; gap: 12px; margin: 18px 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
}}
.tile {{ background: var(--panel); border-radius: 8px; padding: 12px 14px }}
.tile b {{
  display: block; font-size: 23px; line-height: 1.25;
  font-variant-numeric: tabular-nums;
}}
.tile span {{ color: var(--soft); font-size: 13px }}
.note {{
  background: var(--warn-ground); color: var(--warn); border-radius: 8px;
  padding: 8px 14px; margin: 8px 0;
}}
.plots {{
  display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr));
}}
figure {{
  margin: 0; background: var(--panel); border-radius: 8px; padding: 12px;
}}
figure > b {{ font-size: 14px }}
figcaption {{ font-size: 13px; margin-top: 4px }}
svg {{ display: block; width: 100%; height: auto }}
svg text {{ fill: var(--soft); font-size: 11px }}
svg text.label {{ font-size: 12px; fill: var(--text) }}
.grid {{ stroke: var(--line); stroke-width: 1 }}
.axis {{ stroke: var(--soft); stroke-width: 1 }}
.all {{ fill: var(--all) }}
.kept {{ fill: var(--kept) }}
.zero {{ stroke: var(--text); stroke-dasharray: 3 3; fill: none }}
.edge {{ stroke: var(--soft); stroke-width: .6; fill: none }}
.median {{ stroke: var(--text); stroke-width: 1.6; fill: none }}
.key {{ display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin: 0 5px 0 10px; vertical-align: -1px }}
.scroll {{ overflow-x: auto }}
table {{
  border-collapse: collapse; font-size: 13.5px;
  font-variant-numeric: tabular-nums;
}}
th, td {{
  padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap;
}}
th {{ font-weight: 600; color: var(--soft); vertical-align: bottom;
  white-space: normal; max-width: 96px }}
th:first-child, td:first-child {{ text-align: left }}
td.heat {{ min-width: 46px; text-align: center; padding: 4px 5px }}
th.turn {{ writing-mode: vertical-rl; transform: rotate(180deg);
  text-align: left; padding: 6px 4px }}
.bar {{ display: inline-block; height: 9px; background: var(--kept);
  border-radius: 2px; margin-right: 6px }}
details {{
  background: var(--panel); border-radius: 8px; padding: 8px 14px;
  margin: 6px 0;
}}
summary {{ cursor: pointer; overflow-wrap: anywhere }}
summary .soft {{ font-variant-numeric: tabular-nums }}
.tag {{ background: var(--kept); color: var(--ground); border-radius: 4px;
  font-size: 12px; padding: 1px 6px; margin-left: 6px }}
pre {{
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  background: var(--ground); border: 1px solid var(--line); border-radius: 6px;
  padding: 8px 10px; margin: 4px 0 10px; max-height: 360px; overflow-y: auto;
  font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}}
@media print {{ details {{ break-inside: avoid }} }}
"""
