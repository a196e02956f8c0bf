"""The student: a decoder with ternary weights, computed as llama.cpp's graph `bitnet` computes it.

Weights become -s, 0 or s, where s is the mean size of a matrix's weights; activations become whole
numbers from -127 to 127 in blocks of 256, as llama.cpp's Q8_K. Both are rounded in the forward pass
and let gradients pass unchanged (straight-through). Not here: training (train.py), files (export.py).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kitbash_ray.learn.recipe import Shape

HEAD = 64
#: Values that share a scale, in activations and in files; and where the matrix is Q8_0.
BLOCK, BYTES_BLOCK = 256, 32
#: Dimensions of the sentence vectors that training compares with.
VECTOR = 384


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return ternary(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _NormedRounded(torch.autograd.Function):
    """`rounded` of a norm in one go: in training this is memory traffic more than it is sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        shrink = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x.to(kind), gain, shrink)
        return rounded((wide * shrink).mul_(gain)).to(kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, gain, shrink = ctx.saved_tensors
        unit, gradient = x.float().mul_(shrink), gradients[0].float()
        both = (gradient * unit).flatten(0, -2)
        mean = torch.mv(both, gain).div_(x.shape[-1]).view(shrink.shape)
        return (gradient * gain).sub_(unit.mul_(mean)).mul_(shrink), both.sum(0), None, None


def ternary(weight: Tensor) -> Tensor:
    """`weight` (any shape) with every value rounded to -s, 0 or s; s is the mean size."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round_().clamp_(-1, 1).mul_(scale)


def rounded(x: Tensor, block: int = BLOCK) -> Tensor:
    """`x` (..., n), n a multiple of `block`, with each block in 255 steps of its largest value."""
    blocks = x.unflatten(-1, (-1, block))
    largest = torch.maximum(blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True).neg_())
    step = largest.clamp_(min=1e-12).div_(127)
    return (blocks / step).round_().mul_(step).flatten(-2)


class BitLinear(nn.Module):
    """A ternary matrix. With `fixed`, the weights are ternary already (read from a file) and stay as they are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.fixed = False

    def forward(self, x: Tensor) -> Tensor:
        """Of `x` (..., inputs), whose activations are rounded already."""
        return F.linear(x, self.weight if self.fixed else _Ternary.apply(self.weight))


class Norm(nn.Module):
    """Root mean square norm with a learned gain."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.epsilon)

    def rounded(self, x: Tensor) -> Tensor:
        """The norm of `x`, rounded for a matrix."""
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else torch.float32
        return cast(Tensor, _NormedRounded.apply(x, self.weight, self.epsilon, kind))


class Block(nn.Module):
    """Attention and a gated feed-forward, each with a second norm before its last matrix.

    The members have the names of the GGUF's tensors.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.width, shape.inner
        self.attn_norm, self.attn_sub_norm = Norm(width, shape.epsilon), Norm(width, shape.epsilon)
        self.attn_q, self.attn_k, self.attn_v = (BitLinear(width, width) for _ in range(3))
        self.attn_output = BitLinear(width, width)
        self.ffn_norm, self.ffn_sub_norm = Norm(width, shape.epsilon), Norm(inner, shape.epsilon)
        self.ffn_gate, self.ffn_up, self.ffn_down = BitLinear(width, inner), BitLinear(width, inner), BitLinear(inner, width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """`x` (texts, tokens, width) float32; `turn` from `rotation`."""
        seen = self.attn_norm.rounded(x)

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, HEAD)).transpose(1, 2)

        query, key = (rotated(split(part(seen)), turn) for part in (self.attn_q, self.attn_k))
        found = attended(query, key, split(self.attn_v(seen)))
        x = x + self.attn_output(self.attn_sub_norm.rounded(found.transpose(1, 2).flatten(-2)))
        seen = self.ffn_norm.rounded(x)
        inner = F.silu(self.ffn_gate(seen)) * self.ffn_up(seen)
        return x + self.ffn_down(self.ffn_sub_norm.rounded(inner))


class Student(nn.Module):
    """The whole decoder; the embedding is also the last matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.fixed, self._reads_in_bytes = shape, False, False
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.output_norm = Norm(shape.width, shape.epsilon)

    def states(self, tokens: Tensor) -> Tensor:
        """Of `tokens` (texts, tokens) what the last matrix reads: (texts, tokens, width)."""
        turn = rotation(tokens.shape[1], self.shape.rope_base, tokens.device)
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, turn)
        return self.output_norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Of `states` (..., width) the natural logits of the next token: (..., vocabulary)."""
        states = rounded(states, BYTES_BLOCK) if self._reads_in_bytes else states
        return F.linear(states, self.token_embd.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.states(tokens))

    def matrices(self) -> list[nn.Parameter]:
        """The weights that become ternary."""
        return [module.weight for module in self.modules() if isinstance(module, BitLinear)]

    def fix(self, *, reads_in_bytes: bool) -> None:
        """Take the weights as they are from now on; with `reads_in_bytes` the last matrix reads what llama.cpp rounded."""
        self.fixed, self._reads_in_bytes = True, reads_in_bytes
        for module in self.modules():
            if isinstance(module, BitLinear):
                module.fixed = True


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention over (texts, heads, tokens, HEAD); written out, as PyTorch's own is slow on short texts."""
    tokens = query.shape[-2]
    hidden = torch.full((tokens, tokens), -torch.inf, device=query.device, dtype=query.dtype).triu_(1)
    looks = (query * HEAD**-0.5) @ key.transpose(-1, -2) + hidden
    return looks.softmax(-1).to(value.dtype) @ value


def rotation(tokens: int, base: float, device: Any) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, (tokens, HEAD / 2) each."""
    rates = base ** (-torch.arange(0, HEAD, 2, device=device, dtype=torch.float32) / HEAD)
    angles = torch.arange(tokens, device=device, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """`x` (texts, heads, tokens, HEAD) turned by position; the halves of a head are the two axes (NEOX)."""
    cosine, sine = (part.to(x.dtype) for part in turn)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
