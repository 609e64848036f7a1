import pytest

from tasks import wrong_options
from tasks.documents import Document
from tasks.quiz import DraftQuestion
from tasks.wrong_options import DRAWN, OWN, TOO_FEW, Answer, answer_kind, choose_options, draw_options

TEXT = (
    "Bertil Osgood drew the lens of black pumice at Pell Sound. The lens has 304 prisms. In 1931, on 14 November, the "
    "tower stayed dark. Odile counts aloud, and the stolen key was the reason."
)
DOCUMENT = Document("lamp-1", "The Lamp", "", "", TEXT)


@pytest.mark.parametrize(
    ("right", "question", "kind"),
    [
        ("1931", "When was it?", "year"),
        ("in 1931", "When was it?", "year"),
        ("14 November 1931", "When was it?", "date"),
        ("1931-11-14", "When was it?", "date"),
        ("304 prisms", "How many?", "number"),
        ("thirty-nine years", "How long?", "number"),
        ("Bertil Osgood", "Who drew it?", "person"),
        ("the Pell Sound", "Where is it?", "place"),
        ("Pell Sound", "In which town is it?", "place"),
        ("Pell Sound", "What is its name?", "name"),
        ("black pumice", "What is it made of?", "phrase"),
        ("Tower", "What stayed dark?", "phrase"),  # in lower case in the text
        ("Key", "What was stolen?", "phrase"),
    ],
)
def test_kinds_of_answers(right, question, kind):
    assert answer_kind(right, question, TEXT) == kind


def answers(kind: str, *texts: str) -> list[Answer]:
    return [Answer(text, kind, f"other-{number}") for number, text in enumerate(texts)]


def draw(question: str, right: str, pool: list[Answer], seed: int = 0) -> tuple[str, ...] | None:
    drawn = draw_options(DraftQuestion("lamp-1-0", question, (right, "x"), TEXT), DOCUMENT, pool, seed)
    return drawn and drawn.options[1:]


def test_drawn_options_are_of_the_same_kind_and_never_right_here():
    people = answers("person", "Hester Rook", "Ludo Farrant", "Anselm Varga", "Odile", "Bertil Osgood")
    pool = people + answers("phrase", "waxed linen", "hammered pewter", "tarred walnut", "a stolen key", "black pumice")
    assert set(draw("Who drew it?", "Bertil Osgood", pool)) == {"Hester Rook", "Ludo Farrant", "Anselm Varga"}
    assert set(draw("What is it made of?", "black pumice", pool)) == {"waxed linen", "hammered pewter", "tarred walnut"}
    own = [Answer(one.text, one.kind, DOCUMENT.uid) for one in people[:3]]
    assert draw("Who drew it?", "Bertil Osgood", own) is None  # of this document
    assert draw("Who drew it?", "Bertil Osgood", people[:2]) is None
    places = answers("place", "Lathe Cross", "Old Senna", "Quillon Bay")
    assert draw("Who drew it?", "Bertil Osgood", places)  # any names, for want of people
    assert draw("When?", "1931", places) is None


def test_drawn_options_are_distinct_and_of_like_form():
    pool = answers("number", "12 bells", "500 prisms", "7 prisms", "19 prisms", "twenty prisms")
    assert set(draw("How many prisms?", "304 prisms", pool)) <= {"500 prisms", "7 prisms", "19 prisms", "twenty prisms"}
    pool = answers("phrase", "a tuning fork", "a fork for tuning", "a tin bath", "a red sail", "with great care indeed")
    drawn = draw("What was the reason?", "a brass bell", pool)
    assert len(set(drawn) & {"a tuning fork", "a fork for tuning"}) == 1
    assert set(drawn) > {"a tin bath", "a red sail"}
    assert (
        draw("Why?", "because the keeper had gone to the mainland for oil", pool) is None
    )  # the length would reveal it
    capital = draw("What was the reason?", "A brass bell", pool)
    assert all(option[0] == "A" for option in capital)


def test_drawn_options_are_seeded():
    pool = answers("phrase", *(f"a {word} stone" for word in ("red", "tan", "icy", "wet", "dry", "old", "new", "odd")))
    pool = [answer for answer in pool if answer]
    drawn = [draw("What?", "a big boat", pool, seed) for seed in range(6)]
    assert drawn == [draw("What?", "a big boat", pool, seed) for seed in range(6)]
    assert len(set(drawn)) > 1


def test_sources_of_options():
    others = [Document(f"d{n}", f"D{n}", "", "", f"It was {word}.") for n, word in enumerate(("tin", "oak", "wax"))]
    drafts = {d.uid: [DraftQuestion(f"{d.uid}-0", "What?", (d.text[7:-1], "a", "a", "c"), d.text)] for d in others}
    good = DraftQuestion("lamp-1-0", "What?", ("key", "lid", "pan", "pot"), TEXT)
    poor = DraftQuestion("lamp-1-1", "What?", ("key", "lid", "the lid", "pot"), TEXT)
    drafts[DOCUMENT.uid] = [good, poor]
    documents = [DOCUMENT, *others]
    chosen, counts = choose_options(drafts, documents, "auto", 0)
    assert chosen[DOCUMENT.uid][0] == good
    assert set(chosen[DOCUMENT.uid][1].options[1:]) == {"tin", "oak", "wax"}
    assert (counts[OWN], counts[DRAWN], counts[TOO_FEW]) == (1, 4, 0)
    chosen, counts = choose_options(drafts, documents, "documents", 0)
    assert set(chosen[DOCUMENT.uid][0].options[1:]) == {"tin", "oak", "wax"}
    assert (counts[OWN], counts[DRAWN]) == (0, 5)
    chosen, counts = choose_options(drafts, documents, "model", 0)
    assert chosen == drafts
    chosen, counts = choose_options({DOCUMENT.uid: [poor]}, documents, "auto", 0)
    assert (chosen[DOCUMENT.uid], counts[TOO_FEW]) == ([], 1)


def test_beginnings_of_sentences_are_not_names():
    assert wrong_options.uncapitalized("Black pumice", TEXT) == "black pumice"
    assert wrong_options.uncapitalized("The tower", TEXT) == "the tower"
    assert wrong_options.uncapitalized("Pell Sound", TEXT) == "Pell Sound"
