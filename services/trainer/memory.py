"""How much memory a training run needs, from its shapes alone: an account of every tensor that is alive at its peak.

Bytes, and GB of 1e9 bytes. H hidden size, Q and K widths of queries and keys, I of the MLP, V vocabulary, L layers, T tokens
of a micro-batch; s bytes of a number on the residual stream, c of one inside a layer (2 and 2 in bf16, 4 and 4 in fp32, 4 and 2
when fp32 weights train under autocast). What transformers' Qwen3 keeps of each layer for the backward pass, by token:

    two norms over H       4H each: they compute in fp32 and keep that copy; sH more each when their weight is trained
    norms of q and k       4Q + 4K; c(Q + K) more when trained
    attention              c(Q + K + K + Q): q and k after rotation, v, output; 4 bytes a head for the log-sum-exp
    MLP                    3cI: gate, its SiLU, up
    inputs of products     full: 2sH before q, k, v and gate, up (under autocast each product casts its own: 5cH), cI before down;
                           adapter: see `_adapter_inputs`
    attention of `sdpa`    a copy of the output, cQ, where the product after it keeps its input: rows are joined again

With checkpointing only each layer's input, sH, is kept, and one layer at a time is recomputed. After the layers: the last norm
(4H, sH when trained), its output, the supervised part of it, and that part's gradient (sH each).

The peak is the largest of three moments; gradients are there from the first when a step has several micro-batches:

    loss      everything kept, and one chunk of logits: 8 bytes each (bf16, fp32, and the chunk before's gradient). A trained
              head has its gradient, and under autocast a bf16 copy of itself and a bf16 product as large
    backward  everything kept (one recomputed layer of it with checkpointing), and the gradients inside an MLP: of its product,
              its SiLU and up, 3cI, less the product itself, which is freed by then
    end       everything freed, all gradients; a tied head's gradient waits for the embedding's, and they are added: two or
              three copies of the embedding

The CUDA context, cuBLAS' workspace and the allocator's fragments are not in here: see `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.contract.adapter_fit import module_sizes

GB = 1e9
PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "transient")


@dataclass(frozen=True)
class Shape:
    """A Qwen3's sizes, in numbers of elements."""

    hidden: int
    inner: int
    layers: int
    heads: int
    query: int
    key: int
    head_dim: int
    vocabulary: int
    tied: bool
    attention_bias: bool
    modules: Mapping[str, tuple[str, int, int]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a model's config.json. Raises `KeyError`, `TypeError` or `ValueError` when a size is missing or no number."""
        modules = module_sizes(config)
        heads = int(config["num_attention_heads"])
        query, key = modules["q_proj"][2], modules["k_proj"][2]
        return cls(
            hidden=int(config["hidden_size"]),
            inner=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            query=query,
            key=key,
            head_dim=query // heads,
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            modules=modules,
        )

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        products = sum(inputs * outputs for _, inputs, outputs in self.modules.values())
        biases = self.query + 2 * self.key + self.hidden if self.attention_bias else 0
        return products + biases + 2 * self.hidden + 2 * self.head_dim

    @property
    def parameters(self) -> int:
        """The head of a tied model is its embedding and counts once."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """A is rank x inputs, B is outputs x rank, for each target of each layer."""
        sizes = [self.modules[target] for target in targets]
        return self.layers * sum(rank * (inputs + outputs) for _, inputs, outputs in sizes)


@dataclass(frozen=True)
class Load:
    """What of a training run decides its memory. `tokens` and `chunk` are positions of one micro-batch.

    `adapter_inputs`: `cast` when peft makes an fp32 copy of what goes into each adapter, `shared` when it takes it as it is.
    `mask_bytes`: of dropout's mask, for each element; 1 on a GPU, on a CPU as wide as what is dropped.
    `logits_bytes`: of the loss, for each logit of a chunk; 12 and `chunk` = `tokens` is transformers' own loss in bf16.
    """

    method: Literal["lora", "full"]
    tokens: int
    chunk: int
    base_bytes: int = 2
    stream_bytes: int = 2
    inner_bytes: int = 2
    trained_bytes: int = 4
    moment_bytes: int = 4
    autocast: bool = True
    checkpointing: bool = False
    accumulates: bool = True
    copies_attention: bool = False
    rank: int = 16
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    mask_bytes: int = 1
    adapter_inputs: Literal["cast", "shared"] = "shared"
    logits_bytes: int = 8
    shards: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment of the peak, on one device."""

    moment: str
    parts: Mapping[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def measure_memory(shape: Shape, load: Load) -> Memory:
    """The peak of a step that is not the first.

    With `load.shards` devices (FSDP) each has its share of weights, gradients and moments, and holds whole the embedding and
    two layers, the one at work and the one that is fetched; this part was not measured.
    """
    moments = {"loss": _at_loss(shape, load), "backward": _in_backward(shape, load), "end": _at_end(shape, load)}
    name = max(moments, key=lambda moment: sum(moments[moment].values()))
    return Memory(name, moments[name])


def trainable_parameters(shape: Shape, load: Load) -> int:
    return shape.parameters if load.method == "full" else shape.adapter_parameters(load.rank, load.targets)


def kept_by_layer(shape: Shape, load: Load) -> int:
    """Bytes a token that one layer keeps for its backward pass, recomputed or not."""
    s, c = load.stream_bytes, load.inner_bytes
    h, q, k, i = shape.hidden, shape.query, shape.key, shape.inner
    norms = 4 * (2 * h + q + k)
    attention = c * (2 * q + 2 * k) + 4 * shape.heads
    kept = norms + attention + 3 * c * i
    if load.method == "lora":
        return kept + _adapter_inputs(shape, load)
    trained_norms = 2 * s * h + c * (q + k)
    inputs = 2 * s * h if s == c else 5 * c * h
    return kept + trained_norms + inputs + c * i + (c * q if load.copies_attention else 0)


def _adapter_inputs(shape: Shape, load: Load) -> int:
    """What the adapters of a layer keep by token: A's input, B's input, and dropout's mask.

    Without dropout, modules with the same input share it, and the attention's output is kept already. Dropout makes a tensor
    for each module, as does a cast to fp32 (which dropout then replaces).
    """
    c = load.inner_bytes
    own = 4 if load.adapter_inputs == "cast" else c
    kept, shared = 0, set()
    for target in load.targets:
        width = shape.modules[target][1]
        kept += own * load.rank
        if load.dropout:
            kept += (own + load.mask_bytes) * width
        elif load.adapter_inputs == "cast" and c != 4:
            kept += own * width
        else:
            source = {"q_proj": "n1", "k_proj": "n1", "v_proj": "n1", "gate_proj": "n2", "up_proj": "n2"}
            shared.add((source.get(target, target), width))
    kept += sum(c * width for name, width in shared if name != "o_proj" or load.copies_attention)
    return kept


def _static(shape: Shape, load: Load, gradients: bool) -> dict[str, int]:
    trained = trainable_parameters(shape, load)
    whole = 0 if load.method == "full" else shape.parameters * load.base_bytes
    if load.shards > 1:
        whole = (shape.embedding + 2 * shape.layer_parameters) * load.trained_bytes
    return {
        "weights": whole + trained * load.trained_bytes // load.shards,
        "gradients": trained * load.trained_bytes // load.shards if gradients else 0,
        "optimizer": 2 * trained * load.moment_bytes // load.shards,
    }


def _kept(shape: Shape, load: Load) -> int:
    """Activations when the forward pass has gone through all layers."""
    by_token = load.stream_bytes * shape.hidden if load.checkpointing else kept_by_layer(shape, load)
    rotation = 2 * shape.head_dim * load.stream_bytes
    return load.tokens * (shape.layers * by_token + rotation)


def _after_layers(shape: Shape, load: Load) -> int:
    s, h = load.stream_bytes, shape.hidden
    return load.tokens * h * (4 + (s if load.method == "full" else 0) + 3 * s)


def _weight_copies(shape: Shape, load: Load) -> int:
    """Copies in bf16 of fp32 weights that autocast keeps until its end, and the backward pass as long as it needs them."""
    if not load.autocast or load.trained_bytes == 2:
        return 0
    if load.method == "lora":
        return 0 if load.adapter_inputs == "cast" else 2 * trainable_parameters(shape, load)
    return 2 * shape.layers * shape.layer_parameters


def _at_loss(shape: Shape, load: Load) -> dict[str, int]:
    parts = _static(shape, load, gradients=load.accumulates)
    logits = load.logits_bytes * shape.vocabulary * min(load.chunk, load.tokens)
    head = 0
    if load.method == "full":
        head = shape.embedding * (load.trained_bytes + (4 if load.autocast and load.trained_bytes == 4 else 0))
    parts["activations"] = _kept(shape, load) + _after_layers(shape, load)
    parts["loss"] = logits + head
    parts["transient"] = _weight_copies(shape, load)
    return parts


def _in_backward(shape: Shape, load: Load) -> dict[str, int]:
    parts = _static(shape, load, gradients=load.accumulates)
    c, i = load.inner_bytes, shape.inner
    product_kept = load.method == "full" or ("down_proj" in load.targets and not load.dropout)
    inside = (2 if product_kept else 3) * c * i + load.stream_bytes * shape.hidden
    if load.adapter_inputs == "cast" and "down_proj" in load.targets:
        inside += 4 * i
    layer = kept_by_layer(shape, load) if load.checkpointing else 0
    copies = _weight_copies(shape, load)
    parts["activations"] = _kept(shape, load) + load.tokens * layer
    parts["loss"] = shape.embedding * load.trained_bytes if load.method == "full" else 0
    parts["transient"] = load.tokens * inside + (copies // shape.layers if load.checkpointing else copies)
    return parts


def _at_end(shape: Shape, load: Load) -> dict[str, int]:
    parts = _static(shape, load, gradients=True)
    embedding = shape.embedding * load.trained_bytes if load.method == "full" else 0
    copies = (3 if load.accumulates else 2) if shape.tied else 1
    parts["activations"] = load.tokens * load.stream_bytes * shape.hidden
    parts["loss"] = 0
    parts["transient"] = copies * embedding
    return parts
