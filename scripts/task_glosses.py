"""A text task with room for a student: which of WordNet's 45 lexicographer files (noun.food, verb.motion ...) a
definition comes from; and networks for it: a teacher (MiniLM-L6 with a head) and three students.

Every synset has one file and one definition, so 117,000 texts are labelled by hand. The split is drawn from a fixed
seed: TEST texts that nothing but the last figure sees, the rest to train with.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import tasks
from task_material import MODELS, Feed

CLASSES = 45
TEST, LENGTH = 5000, 32  # texts; tokens of the longest
_LAYERS, _WIDTH, _HEADS, _INNER = 4, 128, 4, 256  # of the narrow transformer
_VOCABULARY = 30522


@functools.cache
def glosses() -> tuple[tuple[str, int], ...]:
    """(definition, number of its lexicographer file) of every synset, shuffled; no definition twice."""
    found: dict[str, int] = {}
    for part in ("adj", "adv", "noun", "verb"):
        for line in (MODELS / "wordnet" / f"data.{part}").read_text("ascii").splitlines():
            record, bar, gloss = line.partition(" | ")
            text = gloss.split('; "')[0].strip()
            if bar and text and not line.startswith("  "):
                found.setdefault(text, int(record.split()[1]))
    order = np.random.default_rng(0).permutation(len(found))
    items = tuple(found.items())
    return tuple(items[i] for i in order)


def feeds(pairs: Sequence[tuple[str, int]], labels: bool = True) -> list[Feed]:
    """A feed for each text, not padded: int64 [1, tokens], and its label."""
    tokens = tasks.tokenizer()
    tokens.no_padding()
    tokens.enable_truncation(LENGTH)
    made = []
    for encoded, (_, label) in zip(tokens.encode_batch([t for t, _ in pairs]), pairs, strict=True):
        ids = np.array([encoded.ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        made.append({**feed, "label": np.array([label])} if labels else feed)
    return made


HEAD = """<ir_version: 8, opset_import: ["": 17]> head (float[N,S,D] HIDDEN) => (float[N,45] logits) {
    head_axis = Constant <value = int64[1] {1}> ()
    head_mean = ReduceMean <axes = [1], keepdims = 0> (HIDDEN)
    logits = Gemm <transB = 1> (head_mean, head_w, head_b)
}"""


def with_head(path: str, hidden: str, width: int, seed: int) -> onnx.ModelProto:
    """The encoder in `path`, the mean of its token vectors `hidden` and a new linear layer as its only output."""
    model, head = onnx.load(MODELS / path), onnx.parser.parse_model(HEAD.replace("HIDDEN", hidden))
    opset = next(o.version for o in model.opset_import if not o.domain)
    if opset < 17:
        model = onnx.version_converter.convert_version(model, 17)
    model.graph.node.extend(n for n in head.graph.node if n.op_type != "Constant")
    del model.graph.output[:]
    model.graph.output.extend(head.graph.output)
    _weights(model, {"head_w": (CLASSES, width), "head_b": (CLASSES,)}, seed)
    return model


def _weights(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Random initializers: matrices N(0, 1/inputs), embeddings N(0, .02), biases 0, scales 1."""
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        if name.startswith("embedding"):
            value = 0.02 * rng.standard_normal(shape)
        elif len(shape) > 1:
            value = rng.standard_normal(shape) / np.sqrt(shape[0] if name.endswith("_m") else np.prod(shape[1:]))
        else:
            value = np.ones(shape) if name.endswith("_scale") else np.zeros(shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))


INPUTS = "int64[N,S] input_ids"


def convolutional(seed: int) -> onnx.ModelProto:
    """Embeddings of 64, two convolutions over the tokens, the largest of each channel; random weights."""
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 17]>
g ({INPUTS}) => (float[N,45] logits) {{
    e = Gather(embedding, input_ids)
    x = Transpose <perm = [0, 2, 1]> (e)
    a = Conv <pads = [1, 1]> (x, w1, b1)
    r = Relu(a)
    b = Conv <pads = [1, 1]> (r, w2, b2)
    s = Relu(b)
    m = GlobalMaxPool(s)
    f = Flatten(m)
    logits = Gemm <transB = 1> (f, w3, b3)
}}""")
    shapes = {"embedding": (_VOCABULARY, 64), "w1": (128, 64, 3), "b1": (128,), "w2": (128, 128, 3), "b2": (128,)}
    _weights(model, {**shapes, "w3": (CLASSES, 128), "b3": (CLASSES,)}, seed)
    return model


_BLOCK = """
    n@ = LayerNormalization <axis = -1> (x@, n@_scale, n@_bias)
    q@_f = MatMul(n@, q@_m)
    k@_f = MatMul(n@, k@_m)
    v@_f = MatMul(n@, v@_m)
    q@_h = Reshape(q@_f, heads)
    k@_h = Reshape(k@_f, heads)
    v@_h = Reshape(v@_f, heads)
    q@_t = Transpose <perm = [0, 2, 1, 3]> (q@_h)
    k@_t = Transpose <perm = [0, 2, 3, 1]> (k@_h)
    v@_t = Transpose <perm = [0, 2, 1, 3]> (v@_h)
    s@ = MatMul(q@_t, k@_t)
    s@_d = Mul(s@, part)
    p@ = Softmax <axis = -1> (s@_d)
    c@ = MatMul(p@, v@_t)
    c@_t = Transpose <perm = [0, 2, 1, 3]> (c@)
    c@_f = Reshape(c@_t, flat)
    o@ = MatMul(c@_f, o@_m)
    y@ = Add(x@, o@)
    l@ = LayerNormalization <axis = -1> (y@, l@_scale, l@_bias)
    u@ = MatMul(l@, u@_m)
    u@_b = Add(u@, u@_bias)
    g@ = Relu(u@_b)
    d@ = MatMul(g@, d@_m)
    x# = Add(y@, d@)"""


def narrow(seed: int) -> onnx.ModelProto:
    """A transformer of four layers of width 128; random weights."""
    blocks = "".join(_BLOCK.replace("@", str(i)).replace("#", str(i + 1)) for i in range(_LAYERS))
    size = _WIDTH // _HEADS
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 17]>
g ({INPUTS}) => (float[N,45] logits) {{
    heads = Constant <value = int64[4] {{0, 0, {_HEADS}, {size}}}> ()
    flat = Constant <value = int64[3] {{0, 0, {_WIDTH}}}> ()
    part = Constant <value = float {{{size**-0.5}}}> ()
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    shape = Shape <start = 1> (input_ids)
    places = Slice(embedding_places, zero, shape, zero)
    e = Gather(embedding, input_ids)
    x0 = Add(e, places)
    {blocks}
    n = LayerNormalization <axis = -1> (x{_LAYERS}, n_scale, n_bias)
    m = ReduceMean <axes = [1], keepdims = 0> (n)
    logits = Gemm <transB = 1> (m, w, b)
}}""")
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (_VOCABULARY, _WIDTH), "embedding_places": (LENGTH, _WIDTH), "n_scale": (_WIDTH,),
        "n_bias": (_WIDTH,), "w": (CLASSES, _WIDTH), "b": (CLASSES,),
    }  # fmt: skip
    for i in range(_LAYERS):
        square = {f"{x}{i}_m": (_WIDTH, _WIDTH) for x in "qkvo"}
        norms = {f"{x}{i}_{y}": (_WIDTH,) for x in "nl" for y in ("scale", "bias")}
        inner = {f"u{i}_m": (_WIDTH, _INNER), f"u{i}_bias": (_INNER,), f"d{i}_m": (_INNER, _WIDTH)}
        shapes |= {**square, **norms, **inner}
    _weights(model, shapes, seed)
    return model
