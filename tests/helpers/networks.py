"""Whole networks, tiny, each with a closure over one fixed batch."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, Callable[[], Tensor]]


@dataclass(frozen=True)
class Network:
    """A network to test on.

    Attributes:
        name: For the test's id.
        make: Makes the model and the closure, in a dtype.
        still: Blocks that have no direction: their inputs depend on no weight.
        tied: Weights that are looked up too, of which only free rows move (test_tied.py).
        spanned: Blocks whose null space is empty.
        tolerance: Of the direction in float64; wider where the network itself computes in float32.
    """

    name: str
    make: Callable[[torch.dtype], Built]
    still: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()
    spanned: frozenset[str] = frozenset()
    tolerance: float = 1e-9

    def __repr__(self) -> str:
        return self.name


def labels(n: int, classes: int) -> Tensor:
    """Return some class labels."""
    return torch.arange(n) * 7 % classes


def gelu_mlp(dtype: torch.dtype) -> Built:
    """Layers, norms, GELU."""
    model = nn.Sequential(
        nn.Linear(8, 24),
        nn.LayerNorm(24),
        nn.GELU(),
        nn.Linear(24, 24),
        nn.GELU(),
        nn.Linear(24, 4),
    ).to(dtype)
    x, y = torch.randn(6, 8, dtype=dtype), labels(6, 4)
    return model, lambda: F.cross_entropy(model(x).double(), y)


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a projected shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.short(x))


def resnet(dtype: torch.dtype) -> Built:
    """Residual blocks; BatchNorm in training mode."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).to(dtype)
    x, y = torch.randn(3, 3, 4, 4, dtype=dtype), labels(3, 4)
    return model, lambda: F.cross_entropy(model(x).double(), y)


class Encoder(nn.Module):
    """A transformer encoder between a linear embedding and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(torch.tanh(self.embed(x))).mean(1))
        return out


def encoder(dtype: torch.dtype) -> Built:
    """``nn.TransformerEncoder`` in training mode, dropout on."""
    model = Encoder().to(dtype)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.1)
    x, y = torch.randn(2, 4, 5, dtype=dtype), labels(2, 4)
    return model, lambda: F.cross_entropy(model(x).double(), y)


def gpt2(dtype: torch.dtype) -> Built:
    """GPT-2: transposed weights in addmm, a head tied to the embedding, dropout on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=19, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).to(dtype).train()
    ids = torch.arange(10).reshape(2, 5) * 3 % 19
    return model, lambda: _next_token(model(input_ids=ids, use_cache=False).logits, ids)


def bert(dtype: torch.dtype) -> Built:
    """BERT with padding and dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=19,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).to(dtype).train()
    ids = torch.arange(10).reshape(2, 5) * 3 % 19
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    y = labels(2, 3)
    return model, lambda: F.cross_entropy(
        model(input_ids=ids, attention_mask=mask).logits.double(), y
    )


def llama(dtype: torch.dtype) -> Built:
    """Llama: RMSNorm, rotary embeddings, grouped queries, gated feed-forward, free head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=19,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).to(dtype).train()
    ids = torch.arange(10).reshape(2, 5) * 3 % 19
    return model, lambda: _next_token(model(input_ids=ids, use_cache=False).logits, ids)


def llama_in_its_own_dtype(dtype: torch.dtype) -> Built:
    """Llama whose norms do not drop to float32, so that float64 means float64."""
    model, closure = llama(dtype)

    def norm(self: nn.Module, h: Tensor) -> Tensor:
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (h * scale)

    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = types.MethodType(norm, module)  # type: ignore[method-assign]
    return model, closure


def _next_token(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten())


NETWORKS = [
    Network("GELU MLP", gelu_mlp, frozenset({"0.weight"})),
    Network(
        "ResNet",
        resnet,
        still=frozenset({"0.weight"}),
        spanned=frozenset({"1.short.weight", "2.short.weight"}),
    ),
    Network("encoder", encoder, frozenset({"embed.weight"})),
    Network("GPT-2", gpt2, tied=frozenset({"transformer.wte.weight"})),
    Network("BERT", bert),
    Network("Llama", llama_in_its_own_dtype),
    Network("Llama with float32 inside", llama, tolerance=1e-4),
]


def build(network: Network, dtype: torch.dtype = torch.float64) -> Built:
    """Make a network from a fixed seed, larger than its initialisation so that nothing is tiny."""
    torch.manual_seed(0)
    model, closure = network.make(dtype)
    if network.name in ("GPT-2", "BERT", "Llama"):
        for p in model.parameters():
            if p.ndim > 1:
                p.data.mul_(10)  # they start at a standard deviation of 0.02
    return model, closure


def seeded(closure: Callable[[], Tensor], seed: int = 5) -> Callable[[], Tensor]:
    """Return the closure preceded by a seed, for evaluations outside of nullport."""

    def run() -> Tensor:
        torch.manual_seed(seed)
        return closure()

    return run
