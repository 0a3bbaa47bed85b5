"""Plots as plain SVG text: no library, no script, no network.

Colours are classes that the page's style defines for light and dark screens.
Data are binned first, so a plot of ten million rows is as small as one of a
thousand.
"""

import html
import math

import numpy as np

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 44


def ticks(low: float, high: float, count: int = 6) -> list[float]:
  """Round tick values inside [low, high], about `count` of them."""
  if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
    return [low]
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 10) for i in range(first, last + 1)]


class Plot:
  """A frame with two axes; shapes are given in data units."""

  def __init__(self, x_range, y_range, x_label, y_label, width=440, height=300):
    self.width, self.height = width, height
    self.x_range, self.y_range = x_range, y_range
    self.x_label, self.y_label = x_label, y_label
    self._shapes = []

  def x(self, value):
    """Pixels from the left."""
    low, high = self.x_range
    span = self.width - _LEFT - _RIGHT
    return _LEFT + span * (value - low) / ((high - low) or 1.0)

  def y(self, value):
    """Pixels from the top."""
    low, high = self.y_range
    span = self.height - _TOP - _BOTTOM
    return self.height - _BOTTOM - span * (value - low) / ((high - low) or 1.0)

  def rect(self, x0, y0, x1, y1, cls, title=None, inset=0.0):
    """A filled rectangle between two corners."""
    left, right = sorted((self.x(x0), self.x(x1)))
    top, bottom = sorted((self.y(y0), self.y(y1)))
    body = f'<title>{html.escape(title)}</title>' if title else ''
    self._shapes.append(
      f'<rect class="{cls}" x="{left + inset:.1f}" y="{top:.1f}" '
      f'width="{max(right - left - 2 * inset, 0.3):.1f}" '
      f'height="{bottom - top:.1f}">{body}</rect>'
    )

  def dot(self, x, y, size, cls, title=None):
    """A square of `size` pixels around a point."""
    body = f'<title>{html.escape(title)}</title>' if title else ''
    self._shapes.append(
      f'<rect class="{cls}" x="{self.x(x) - size / 2:.1f}" '
      f'y="{self.y(y) - size / 2:.1f}" width="{size:.1f}" '
      f'height="{size:.1f}">{body}</rect>'
    )

  def line(self, points, cls):
    """A polyline through points."""
    path = ' '.join(f'{self.x(x):.1f},{self.y(y):.1f}' for x, y in points)
    self._shapes.append(f'<polyline class="{cls}" points="{path}"/>')

  def text(self, x, y, text, cls='note', anchor='start', dy=0):
    """A text at a point."""
    self._shapes.append(
      f'<text class="{cls}" x="{self.x(x):.1f}" y="{self.y(y) + dy:.1f}" '
      f'text-anchor="{anchor}">{html.escape(text)}</text>'
    )

  def render(self, description: str) -> str:
    """The whole plot; `description` is read aloud instead of it."""
    bottom, right = self.height - _BOTTOM, self.width - _RIGHT
    out = [
      f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
      f'aria-label="{html.escape(description)}">'
    ]
    low, high = self.y_range
    for value in ticks(low, high, count=5):
      y = self.y(value)
      out.append(
        f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/><text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" '
        f'text-anchor="end">{_short(value)}</text>'
      )
    out += self._shapes
    out.append(
      f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" '
      f'y2="{bottom}"/>'
    )
    for value in ticks(*self.x_range):
      out.append(
        f'<text class="tick" x="{self.x(value):.1f}" y="{bottom + 15}" '
        f'text-anchor="middle">{_short(value)}</text>'
      )
    middle = (_LEFT + right) / 2
    out.append(
      f'<text class="label" x="{middle:.0f}" y="{self.height - 8}" '
      f'text-anchor="middle">{html.escape(self.x_label)}</text>'
    )
    middle = (_TOP + bottom) / 2
    out.append(
      f'<text class="label" transform="translate(12 {middle:.0f}) rotate(-90)" '
      f'text-anchor="middle">{html.escape(self.y_label)}</text></svg>'
    )
    return ''.join(out)


def _short(value: float) -> str:
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if abs(value) >= size:
      return f'{value / (1e3 if unit == "k" else size):g}{unit}'
  return f'{value:g}'.replace('-', '\u2212')


def central_range(values, tail: float = 0.005):
  """The range without the far tails; None if there are no values."""
  values = values[np.isfinite(values)]
  if not len(values):
    return None
  low, high = np.quantile(values, [tail, 1 - tail])
  if low == high:
    low, high = low - 0.5, high + 0.5
  return float(low), float(high)


def _bins(per_root, num_rows, few, many) -> int:
  """Fewer bins for few rows."""
  return int(np.clip(per_root * np.sqrt(num_rows), few, many))


def histogram(values_N, chosen_N, x_label: str, height=300) -> str | None:
  """Counts of values; the chosen rows' part of each bar is filled darker.

  What lies outside the central 99% stands in the first and the last bar.
  """
  span = central_range(values_N)
  if span is None:
    return None
  used = np.isfinite(values_N)
  bins = _bins(1.3, used.sum(), 12, 56)
  low, high = span
  edges = np.linspace(low, high, bins + 1)
  values = np.clip(values_N, low, high)
  all_B = np.histogram(values[used], edges)[0]
  kept_B = np.histogram(values[used & chosen_N], edges)[0]
  plot = Plot(
    span, (0, float(all_B.max()) * 1.05), x_label, 'rows', height=height
  )
  for i in range(bins):
    if not all_B[i]:
      continue
    title = (
      f'{edges[i]:.3g} to {edges[i + 1]:.3g}: {all_B[i]:,} rows, '
      f'{kept_B[i]:,} chosen'
    )
    plot.rect(edges[i], 0, edges[i + 1], all_B[i], 'all', title, inset=0.4)
    if kept_B[i]:
      plot.rect(edges[i], 0, edges[i + 1], kept_B[i], 'kept', title, inset=0.4)
  if span[0] < 0 < span[1]:
    plot.line([(0, 0), (0, plot.y_range[1])], 'zero')
  return plot.render(f'Histogram of {x_label}')


def share_map(
  x_N,
  y_N,
  chosen_N,
  x_label,
  y_label,
  *,
  x_range=None,
  y_range=None,
  bins=None,
  marks=None,
  width=440,
  height=360,
) -> str | None:
  """A map of cells: area = rows, colour = the share of them chosen.

  Args:
    x_N: float, NaN = not drawn.
    y_N: float, NaN = not drawn.
    chosen_N: bool.
    x_label: text.
    y_label: text.
    x_range: low and high; default the central 99%.
    y_range: likewise.
    bins: cells along x and y; default by the number of rows.
    marks: called with the Plot, draws above the cells.
    width: pixels.
    height: pixels.
  """
  used = np.isfinite(x_N) & np.isfinite(y_N)
  if not used.any():
    return None
  x_range = x_range or central_range(x_N[used])
  y_range = y_range or central_range(y_N[used])
  bins = bins or (
    _bins(0.75, used.sum(), 12, 44),
    _bins(0.6, used.sum(), 10, 34),
  )
  edges = [
    np.linspace(low, high, n + 1)
    for (low, high), n in zip((x_range, y_range), bins, strict=True)
  ]
  x, y = np.clip(x_N, *x_range), np.clip(y_N, *y_range)
  all_XY = np.histogram2d(x[used], y[used], edges)[0].astype(int)
  kept = used & chosen_N
  kept_XY = np.histogram2d(x[kept], y[kept], edges)[0].astype(int)
  plot = Plot(x_range, y_range, x_label, y_label, width, height)
  cell = min(
    (width - _LEFT - _RIGHT) / bins[0], (height - _TOP - _BOTTOM) / bins[1]
  )
  full = np.quantile(all_XY[all_XY > 0], 0.97)  # not the max: a corner of ties
  for i, j in zip(*np.nonzero(all_XY), strict=True):
    count, part = all_XY[i, j], kept_XY[i, j]
    size = cell * np.clip(math.sqrt(count / full), 0.3, 1.0)
    title = (
      f'{edges[0][i]:.3g} to {edges[0][i + 1]:.3g}, {edges[1][j]:.3g} to '
      f'{edges[1][j + 1]:.3g}: {count:,} rows, {part / count:.0%} chosen'
    )
    plot.dot(
      (edges[0][i] + edges[0][i + 1]) / 2,
      (edges[1][j] + edges[1][j + 1]) / 2,
      size,
      f's{round(10 * part / count)}',
      title,
    )
  if marks:
    marks(plot)
  return plot.render(f'Map of {y_label} over {x_label}')
