"""Everything that decides how a student is made, in one frozen value. Needs no PyTorch."""

from __future__ import annotations

from msgspec import Struct


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """The size of a student. `width` and `inner` are multiples of 256, the block of llama.cpp's TQ2_0."""

    width: int = 512
    #: Of the feed-forward.
    inner: int = 1024
    #: With four of them and 1,536 inside, an answer took half as long again, and no more of them were right.
    blocks: int = 3
    #: Of 64 values each.
    heads: int = 8
    #: Entries of the vocabulary, bytes and special tokens included.
    vocabulary: int = 2048
    #: Tokens of the window.
    context: int = 512
    rope_base: float = 10000.0
    epsilon: float = 1e-5


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """The shape and how it is taught. The default took 46 minutes on one core (AMD EPYC with AVX512-BF16)."""

    shape: Shape = Shape()
    seed: int = 0
    #: Steps of the optimizer.
    steps: int = 2000
    #: Questions a step.
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 60
    #: In the first half of the steps; none in the second, as BitNet is trained.
    weight_decay: float = 0.05
    #: Answers are cut to at least this many tokens, and to as many as tell a fact from all others ...
    answer_tokens: int = 6
    #: ... but this share of them is taught up to the end, or up to `longest` tokens.
    whole: float = 0.03
    longest: int = 64
    #: Share of questions that are to be declined, and of those the share made by exchanging subjects.
    declined: float = 0.15
    exchanged: float = 0.5
    #: Share of questions made of a fact's own words.
    worded: float = 0.2
    #: Share of words in a question that are exchanged for one of like meaning.
    alike: float = 0.08
    #: Weights of the losses that draw the state at the answer's start to the question's sentence vector,
    #: and away from those of the other questions in the batch.
    vectors: float = 1.0
    contrast: float = 0.5
