"""The student's vocabulary: byte-level pairs learned from its corpus, the same for PyTorch and llama.cpp.

Not here: the prompt's form inside a GGUF (export.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

QUESTION, ANSWER, END = "<|question|>", "<|answer|>", "<|end|>"
SPECIAL = (QUESTION, ANSWER, END)


def asked(text: str) -> str:
    """A question as the student reads it: lower case, without what stands around it and ends it.

    The chat template in the GGUF does the same.
    """
    return text.lower().strip().rstrip(".?!").strip()


class Vocabulary:
    """Text to tokens and back."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.question, self.answer, self.end = (int(tokenizer.token_to_id(name)) for name in SPECIAL)

    @classmethod
    def learn(cls, texts: Iterable[str], entries: int) -> Vocabulary:
        """A vocabulary of at most `entries` tokens, special ones included."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer: Any = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=entries,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """The inverse of `to_json`."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        return str(self._tokenizer.to_str())

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; special tokens are not read from a text."""
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """What the student goes on from, for each question."""
        return [[self.question, *ids, self.answer] for ids in self.tokens([asked(text) for text in questions])]

    def text(self, tokens: Sequence[int]) -> str:
        """The inverse of `tokens`, without special ones."""
        return str(self._tokenizer.decode(list(tokens)))

    def entries(self) -> list[str]:
        """The tokens' own spelling, by number."""
        numbers: dict[str, int] = self._tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def merges(self) -> list[str]:
        """The pairs that are put together, the first learned first, each as `left right`."""
        import json

        return [pair if isinstance(pair, str) else " ".join(pair) for pair in json.loads(self.to_json())["model"]["merges"]]
