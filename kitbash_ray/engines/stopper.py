"""Stop sequences in a stream of pieces. Pure."""

from __future__ import annotations

from kitbash_ray.engines.base import Piece


class Stopper:
    """Cuts a stream of pieces at the first stop sequence, which may be spread over several of them."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._stop = stop
        self._held = Piece("")

    def take(self, piece: Piece) -> Piece | None:
        """What can be told now: all but what may be the beginning of a stop sequence."""
        text, logprobs = self._held.text + piece.text, self._held.logprobs + piece.logprobs
        cut = min((at for at in map(text.find, self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped, self._held = True, Piece("")
            return Piece(text[:cut], logprobs)
        keep = _beginning_of(self._stop, text)
        if len(text) == keep:
            self._held = Piece(text, logprobs)
            return None
        self._held = Piece(text[len(text) - keep :])
        return Piece(text[: len(text) - keep], logprobs)

    def rest(self) -> Piece:
        """What was held back when the stream has ended."""
        return self._held


def _beginning_of(stop: tuple[str, ...], text: str) -> int:
    """How many characters at the end of `text` may be the beginning of a stop sequence."""
    return max((size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0)
