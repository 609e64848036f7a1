"""The style of a passage: form, reader and order, drawn for each call, so that passages of one document differ."""

import numpy as np

FORMS = (
    "an article in an encyclopedia",
    "a feature in a magazine",
    "a letter to a friend",
    "a conversation in which one person asks and another answers in full sentences",
    "a chronicle, event by event",
    "a teacher's explanation",
    "a report to colleagues",
    "a talk to an audience",
)
READERS = (
    "for somebody who has never heard of the subject",
    "for a specialist who wants every detail",
    "for pupils of fifteen",
    "for a reader who will be asked about the facts",
    "for somebody who doubts it and wants reasons",
)
ORDERS = (
    "in the order of time",
    "from the outcome back to its causes",
    "from the most important fact to the least",
    "from the smallest detail to the whole",
    "in the order in which the text tells it",
)


def draw_style(key: str, seed: int) -> str:
    """The sentence that asks for a style, the same for the same key and seed."""
    rng = np.random.default_rng([seed, *key.encode()])
    form, reader, order = (choices[rng.integers(len(choices))] for choices in (FORMS, READERS, ORDERS))
    return f"Write it as {form}, {reader}, {order}."
