"""What a reading says of the words of a passage."""

from __future__ import annotations

import numpy as np

from kitbash_ray.knowledge.extractor import LEAST, Reading

#: "a dam of stone" without its last word.
READING = Reading(1.5, np.array([[0, 1], [2, 5], [6, 8]], np.intp), np.log([0.7, 0.2, 0.1]), np.log([0.1, 1e-9, 0.9]))


def test_words_begin_with_the_token_of_their_first_character_and_end_with_that_of_their_last() -> None:
    np.testing.assert_allclose(np.exp(READING.begins_at(np.array([0, 2, 3, 6]))), [0.7, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(np.exp(READING.ends_before(np.array([1, 8]))), [0.1, 0.9])


def test_what_was_not_read_has_the_least_probability_and_nothing_has_less() -> None:
    np.testing.assert_array_equal(READING.begins_at(np.array([1, 9])), [LEAST, LEAST])  # a blank, and behind the end
    np.testing.assert_array_equal(READING.ends_before(np.array([5, 14])), [LEAST, LEAST])


def test_of_a_passage_without_a_token_nothing_was_read() -> None:
    empty = Reading(0.0, np.zeros((0, 2), np.intp), np.zeros(0), np.zeros(0))
    np.testing.assert_array_equal(empty.begins_at(np.array([0, 3])), [LEAST, LEAST])
