"""Pages of reports: complete in themselves, and safe with any text."""

import re

from reports import page


def test_everything_is_escaped():
    evil = "<script>alert(1)</script>&\"'"
    html = page.page(
        evil,
        [
            (evil, page.paragraph(evil) + page.paragraphs(f"{evil}\n\n{evil}") + page.bullets([evil])),
            ("t", page.table((evil, "n"), [(evil, 1)]) + page.graph([evil, "b"], [(evil, "b")], [evil])),
            ("i", page.image(b"png", evil) + page.side_by_side(page.paragraph(evil), "")),
        ],
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 9
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", html)


def test_numbers_are_aligned_to_the_right():
    html = page.table(("name", "words", "note"), [("a", "1,200", "x"), ("b", "–", "2")])
    assert html.count("class=n") == 3  # the header and both cells of `words`; `note` has a text


def test_a_graph_draws_known_nodes_only():
    svg = page.graph(["a", "b" * 40], [("a", "b" * 40), ("a", "unknown")], ["a"])
    assert svg.count("<line") == 1 and svg.count("<circle") == 2
    assert "b" * 26 + "…" in svg and f"<title>{'b' * 40}</title>" in svg
    assert svg.count("#b3402a") == 1
    assert "<circle" not in page.graph([], [])
