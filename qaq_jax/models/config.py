"""ModelConfig: everything that shapes the computation, for every family."""

import dataclasses

from qaq_jax.models.rope import Rope

# Padding the vocabulary to a multiple of this lets it be split over any usual
# tensor axis and keeps TPU lanes full.
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """What differs between the layers of one model.

  Attributes:
    window: a position sees itself and window - 1 before it; None sees all.
    rope: rotary embedding, or None where positions are learned.
  """

  window: int | None = None
  rope: Rope | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
  """`repeats` times the same short `pattern` of layer kinds."""

  pattern: tuple[LayerKind, ...]
  repeats: int

  @property
  def num_layers(self) -> int:
    """Layers in this segment."""
    return len(self.pattern) * self.repeats


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and switches of a decoder-only transformer.

  Attributes:
    family: Hugging Face `model_type`.
    vocab_size: ids that exist; the padding beyond is masked in logits.
    hidden_size: D.
    intermediate_size: F, width of the MLP, or of one expert's.
    num_heads: N, query heads.
    num_kv_heads: G, key/value heads; N is a multiple of G.
    head_dim: K.
    max_positions: longest sequence the model was made for, tokens.
    layers: one LayerKind per layer.
    norm: 'rms', 'rms_plus_one' (scale stored minus one: Gemma) or 'layer'.
    norm_eps: epsilon under the root.
    activation: 'silu', 'gelu_tanh' or 'gelu'.
    gated_mlp: gate and up projections instead of one.
    query_scale: multiplies attention scores before softmax and soft cap.
    qkv_bias: biases on query, key and value projections.
    out_bias: bias on the attention output projection.
    mlp_bias: biases in the MLP.
    qk_norm: RMS norm over each query and key head.
    post_norms: norms also after attention and MLP (Gemma 2 and 3).
    embed_scale: token embeddings are multiplied by sqrt(D) (Gemma).
    learned_positions: rows of the learned position table; 0 for none.
    attn_soft_cap: scores become cap * tanh(scores / cap); None for none.
    final_soft_cap: the same for logits.
    tie_embeddings: the head is the token embedding.
    num_experts: E, MLPs of every layer of which a router chooses; 0: one MLP.
    experts_per_token: X, experts that a token goes to.
    normalized_routing: the weights of the chosen experts sum to one.
    bos_token_id: the id as in config.json; tokenizers may say otherwise.
    eos_token_id: id or ids.
    pad_token_id: id.
    unrolled: layers are not stacked, each is a segment of its own: compiling
      takes longer, and nothing reads a layer's weights out of a stack, which
      would copy them (generation: see `unrolled.py`).
  """

  family: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  layers: tuple[LayerKind, ...]
  norm: str = 'rms'
  norm_eps: float = 1e-6
  activation: str = 'silu'
  gated_mlp: bool = True
  query_scale: float = 1.0
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  embed_scale: bool = False
  learned_positions: int = 0
  attn_soft_cap: float | None = None
  final_soft_cap: float | None = None
  tie_embeddings: bool = False
  num_experts: int = 0
  experts_per_token: int = 0
  normalized_routing: bool = False
  bos_token_id: int | None = None
  eos_token_id: int | tuple[int, ...] | None = None
  pad_token_id: int | None = None
  unrolled: bool = False

  @property
  def num_layers(self) -> int:
    """L."""
    return len(self.layers)

  @property
  def padded_vocab_size(self) -> int:
    """V: the vocabulary with its padding."""
    return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

  @property
  def segments(self) -> tuple[Segment, ...]:
    """The layers as few repeated patterns, each run by one scan."""
    if self.unrolled:
      return tuple(Segment((kind,), 1) for kind in self.layers)
    layers, out = list(self.layers), []
    while layers:
      best = (1, 1)
      for period in range(1, 9):
        pattern = layers[:period]
        repeats = 1
        while layers[repeats * period : (repeats + 1) * period] == pattern:
          repeats += 1
        if repeats > 1 and period * repeats > best[0] * best[1]:
          best = (period, repeats)
      period, repeats = best
      out.append(Segment(tuple(layers[:period]), repeats))
      layers = layers[period * repeats :]
    return tuple(out)

  @property
  def stacks(self) -> tuple[range, ...]:
    """The layers of each parameter stack.

    Each place in each segment's pattern has its own stack, so that a scan reads
    its parameters without reshaping (which would copy them all).
    """
    out, first = [], 0
    for segment in self.segments:
      period = len(segment.pattern)
      last = first + segment.num_layers
      out += [range(first + i, last, period) for i in range(period)]
      first = last
    return tuple(out)
