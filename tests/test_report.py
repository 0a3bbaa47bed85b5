"""The report page: complete, harmless, and small."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest
from selection_tables import make_table

from qaq_jax.report import svg, write_report
from qaq_jax.report.markup import prose
from qaq_jax.selection.columns import ScoreColumns
from qaq_jax.selection.select import select

# Elements that HTML does not close; SVG shapes close themselves.
VOID = {'meta', 'br'}


class Page(html.parser.HTMLParser):
  """Collects a page's elements and text; fails on unbalanced tags."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


@dataclasses.dataclass
class Record:
  query: str
  answer: str


class Samples:
  """Answers for every row, one of them hostile."""

  def __init__(self, texts=None):
    self.texts = texts or {}
    self.asked = []

  def iter_rows(self, start, stop):
    for row in range(start, stop):
      self.asked.append(row)
      query, answer = self.texts.get(row, (f'query {row}', f'answer {row}'))
      yield Record(query, answer)


def write(tmp_path, table, samples=None, rule='diff_high', **options):
  selection = select(table, rule=rule)
  path = tmp_path / 'report' / 'index.html'
  write_report(path, table, selection, samples, **options)
  text = path.read_text(encoding='utf-8')
  assert [p.name for p in path.parent.iterdir()] == ['index.html']
  return text, Page(text), selection


def test_the_page_shows_everything(tmp_path):
  text, page, selection = write(
    tmp_path, make_table(600), Samples(), info={'input': 'sha256:abc'}
  )
  shown = ' '.join(page.text)
  for part in (
    'Rows and their status',
    'Reverse mutual information',
    'Where the chosen rows lie',
    'Per stratum',
    'Rank correlations',
    'Rules side by side',
    'Samples at the ends',
    'Run',
    'sha256:abc',
    f'{len(selection.rows):,}',
    selection.report['rows_sha256'],
  ):
    assert part in shown, part
  assert page.tags.count('details') == 20
  # 2 histograms, 2 maps, the rank map, the lengths, and 3 colour keys.
  assert page.tags.count('svg') == 9
  for rule in ('diff_high', 'length_matched', 'r_ifd'):
    assert rule in shown


def test_the_page_loads_and_runs_nothing(tmp_path):
  text, page, _ = write(tmp_path, make_table(200), Samples())
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(page.tags)
  for name, value in page.attributes:
    assert not name.startswith('on')
    assert name not in ('src', 'href', 'srcset', 'action')
    assert 'url(' not in (value or '')
  assert '://' not in text
  assert "default-src 'none'" in text


def test_texts_of_samples_stay_texts(tmp_path):
  table = make_table(4, not_ok=0.0)
  nasty = '</pre><script>alert("x")</script>&amp;\x00\x1b[31m\r\nnext\udcff'
  texts = {row: (nasty, nasty) for row in range(4)}
  text, page, _ = write(
    tmp_path,
    table,
    Samples(texts),
    title='<b>bold</b>',
    info={'<i>': '"quoted" & <u>'},
  )
  assert not {'script', 'i', 'u'} & set(page.tags)
  shown = ''.join(page.text)
  assert '</pre><script>alert("x")</script>&amp;\u2400\u241b[31m\nnext' in shown
  assert '\\udcff' in shown
  assert '\x00' not in text and '\x1b' not in text


def test_the_examples_are_the_ends_of_rmi(tmp_path):
  table = make_table(300)
  rmi = ScoreColumns(table).rmi('strong')
  order = np.argsort(np.where(np.isfinite(rmi), rmi, np.inf))
  ranked = order[: np.isfinite(rmi).sum()]
  samples = Samples()
  write(tmp_path, table, samples, num_examples=3)
  assert samples.asked == [*ranked[:3], *ranked[::-1][:3]]


def test_the_chosen_among_the_examples_are_marked(tmp_path):
  text, _, selection = write(
    tmp_path, make_table(300), Samples(), rule='rmi_window', num_examples=100
  )
  marked = {
    int(re.search(r'row (\d+)', example)[1])
    for example in text.split('<details>')[1:]
    if '<span class="tag">chosen</span>' in example
  }
  shown = set(map(int, re.findall(r'>row (\d+)', text)))
  assert marked == shown & set(selection.rows.tolist())
  assert marked and shown - marked


def test_long_texts_are_cut_and_said_so(tmp_path):
  table = make_table(2, not_ok=0.0)
  texts = {row: ('q' * 5000, 'a' * 10) for row in range(2)}
  text, page, _ = write(tmp_path, table, Samples(texts), max_characters=100)
  assert 'q' * 100 in text and 'q' * 111 not in text  # the closed line: 110
  assert '4,900 more characters are not shown' in text


@pytest.mark.parametrize('rule', ['random', 'rmi_window', 'ifd', 'all'])
def test_any_rule_can_be_reported(tmp_path, rule):
  _, page, _ = write(tmp_path, make_table(80), rule=rule)
  assert 'Per stratum' in ' '.join(page.text)


@pytest.mark.parametrize('size', [0, 1, 2, 30])
def test_tiny_tables(tmp_path, size):
  _, page, _ = write(tmp_path, make_table(size, not_ok=0.0), Samples())
  assert page.text


def test_nothing_eligible(tmp_path):
  table = make_table(5)
  for model in ('strong', 'weak'):
    table[f'status_{model}'] = np.full(5, 'too_long')
  _, page, _ = write(tmp_path, table, Samples())
  assert 'No row is eligible' in ' '.join(page.text)


def test_one_model_without_answer_terms(tmp_path):
  """As `author_compatible` leaves it: no answer terms, one role."""
  table = make_table(100, models=('solo',))
  for name in ('nll_a', 'nll_a_given_q', 'n_a'):
    table[f'{name}_solo'] = np.full(100, np.nan)
  path = tmp_path / 'index.html'
  selection = select(table, rule='rmi_top', roles={'strong': 'solo'})
  write_report(path, table, selection, Samples())
  shown = ' '.join(Page(path.read_text()).text)
  assert 'Samples at the ends' in shown
  assert 'Strong against weak' not in shown


def test_a_name_of_a_model_is_escaped(tmp_path):
  table = make_table(50, models=('<a>', 'b&c'))
  path = tmp_path / 'index.html'
  selection = select(table, roles={'strong': '<a>', 'weak': 'b&c'})
  write_report(path, table, selection, Samples())
  assert 'a' not in Page(path.read_text()).tags


def test_names_in_backticks_are_code(tmp_path):
  text, _, selection = write(tmp_path, make_table(50), rule='drop_low')
  assert '`drop`' in selection.report['keeps']
  assert '<code>drop</code>' in text and '`drop`' not in text
  table = {
    k: np.repeat(v[:1], 50) if k.startswith(('nll', 'n_', 'status')) else v
    for k, v in make_table(50, not_ok=0).items()
  }
  text, _, selection = write(tmp_path, table, rule='rmi_top')
  assert any('hash of `row`' in note for note in selection.report['notes'])
  assert 'hash of <code>row</code>' in text
  assert prose('<`a<b`> and ` alone') == (
    '&lt;<code>a&lt;b</code>&gt; and ` alone'
  )


def test_what_ifd_is_stands_by_the_papers_number(tmp_path):
  sentence = 'IFD is a ratio where lower means easier'
  assert sentence in write(tmp_path, make_table(100))[0]
  table = make_table(100)
  for name in ('strong', 'weak'):
    for term in ('nll_a', 'nll_a_given_q', 'n_a'):
      table[f'{term}_{name}'] = np.full(100, np.nan)
  assert sentence not in write(tmp_path, table)[0]


def test_many_rows_do_not_make_a_big_page(tmp_path):
  sizes = [
    len(write(tmp_path / str(n), make_table(n), Samples())[0])
    for n in (5_000, 50_000)
  ]
  assert sizes[1] < 1.3 * sizes[0] < 1_500_000


def test_plots_count_every_row():
  rng = np.random.default_rng(0)
  values = np.concatenate([rng.normal(size=500), [np.nan, 1e9]])
  chosen = rng.random(502) < 0.3
  plot = svg.histogram(values, chosen, 'x')
  counts = re.findall(r': ([\d,]+) rows, ([\d,]+) chosen', plot)
  # A bar's title stands at its whole and at its chosen part.
  bars = dict.fromkeys(re.findall(r'<title>(.*?)</title>', plot))
  total = sum(int(re.search(r': (\d+) rows', bar)[1]) for bar in bars)
  kept = sum(int(re.search(r', (\d+) chosen', bar)[1]) for bar in bars)
  assert counts and total == 501
  assert kept == chosen[np.isfinite(values)].sum()
  cells = svg.share_map(values, values, chosen, 'x', 'y')
  assert (
    sum(int(n.replace(',', '')) for n in re.findall(r': ([\d,]+) rows', cells))
    == 501
  )


@pytest.mark.parametrize(
  'low, high, expected',
  [
    (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (-1.3, 1.3, [-1.0, -0.5, 0.0, 0.5, 1.0]),
    (0.0, 0.0, [0.0]),
  ],
)
def test_ticks_are_round(low, high, expected):
  assert svg.ticks(low, high) == expected
