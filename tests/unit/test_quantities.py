"""What a question wants measured, and what a text measures."""

from __future__ import annotations

import pytest

from kitbash_ray.knowledge.quantities import quantity_unsaid

LEFT = "A blue whale grows to about 30 metres."


@pytest.mark.parametrize(
    ("question", "text", "unsaid"),
    [
        ("How long is a blue whale?", LEFT, False),  # long alone may mean a length or a time
        ("How heavy is a blue whale?", LEFT, True),
        ("How much does a blue whale weigh?", "A blue whale weighs up to 150 tonnes.", False),
        ("How many years does a blue whale live?", LEFT, True),
        ("How tall is it in feet?", LEFT, False),
        ("How expensive is a ticket?", "A ticket costs 3 euros.", False),
        ("How expensive is a ticket?", LEFT, True),
        ("At what temperature does iron melt?", "Iron melts at 1538 °C.", False),
        ("What is the melting point of iron?", LEFT, True),
        ("What percentage of air is oxygen?", "Air is 21 % oxygen.", False),
        ("What percentage of air is oxygen?", "Air has oxygen in it.", True),
        ("How many bytes does an int take?", "An int takes 28 bytes.", False),
        ("How long does quicksort take?", "Quicksort takes O(n log n) on average.", False),
        ("What is ATP?", LEFT, False),
        ("", "", False),
    ],
)
def test_a_fact_without_the_quantity_that_is_wanted_is_noticed(question: str, text: str, unsaid: bool) -> None:
    assert quantity_unsaid(question, text) is unsaid
