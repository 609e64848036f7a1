"""Replies of servers that differ from OpenAI's, and replies of models that are almost JSON."""

import pytest

from data.generation.methods import parse_list
from inference.completions import common_reason, cut_at, json_object_in, parse_chat_reply, strip_reasoning, tokens_read

RUN_ON = (  # cases/reply_runs_on.txt
    "The question asks about the harbour. The ledger names the one who did it. Answer: C.\n\n### Question\n"
    'In the context of "The Garden Party" by Katherine Mansfield (1922): What does Laura bring to the cottage?\n'
    "A. A basket of food\nB. A hat\nC. A letter\nD. A bunch of lilies\n### Thought and answer\n"
    "She is sent with the left-overs of the party. Answer: A.\n"
)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (RUN_ON, ["\n###"], "The question asks about the harbour. The ledger names the one who did it. Answer: C.\n"),
        (" C\nQuestion: and then?", ["\n"], " C"),
        ("one END two STOP", ["STOP", "END"], "one "),
        ("nothing to cut", ["\n"], "nothing to cut"),
    ],
)
def test_texts_are_cut_at_the_first_stop_string(text, stop, expected):
    assert cut_at(text, stop) == expected


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("stop eos eos_token end_turn stop_sequence STOP COMPLETE FINISH_REASON_STOP stop_token", "stop"),
        ("length max_tokens MAX_TOKENS model_length FINISH_REASON_MAX_TOKENS max_output_tokens", "length"),
        ("content_filter SAFETY RECITATION PROHIBITED_CONTENT guardrail_intervened", "content_filter"),
    ],
)
def test_words_for_the_end_of_a_reply(words, reason):
    assert {common_reason(word) for word in words.split()} == {reason}


def test_unknown_words_are_kept():
    assert [common_reason(word) for word in ("tool_calls", "abort", None, {"type": "stop", "matched": 2})] == [
        "tool_calls",
        "abort",
        "",
        "stop",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nHm. Answer: D.\n</think>\n\nAnswer: B.", "Answer: B."),
        ("Hm. Answer: D.\n</think>\n\nAnswer: B.", "Answer: B."),
        ("</think>Answer: B.", "Answer: B."),
        ("  <Thinking>a</Thinking><think>b</think> c", "c"),
        ("The `</think>` tag ends it.\n</think>\nDone.", "Done."),
        ("<think>\nand so on", ""),
        ("The tags <think> and </think> enclose reasoning.", "The tags <think> and </think> enclose reasoning."),
        ("The tag `</think>` ends it.", "The tag `</think>` ends it."),
        ("The tag <think> opens it.", "The tag <think> opens it."),
    ],
)
def test_reasoning_is_not_part_of_the_answer(text, expected):
    assert strip_reasoning(text) == expected


def test_documents_about_the_tags_are_not_cut():
    """With the tag in the prompt, a closing tag alone or an opening one without an end are text."""
    document = "Models write </think> after their reasoning."
    assert strip_reasoning("In it, </think> is named.", document) == "In it, </think> is named."
    assert strip_reasoning("<think> is a tag.", document) == "<think> is a tag."
    assert strip_reasoning("<think>Hm.</think>A tag.", document) == "A tag."


def completion(content: object, reason: object = "stop", **usage: object) -> dict:
    return {"choices": [{"message": {"content": content}, "finish_reason": reason}], "usage": usage}


@pytest.mark.parametrize(
    ("content", "reason", "expected"),
    [
        ([{"type": "text", "text": "Two "}, {"type": "text", "text": "parts."}], "stop", ("Two parts.", "stop")),
        ([{"type": "thinking", "thinking": []}, {"type": "text", "text": "x"}], "eos", ("x", "stop")),
        ([{"type": "output_text", "text": "x"}], "end_turn", ("x", "stop")),
        ("<think>never ends", "length", ("", "length")),
        ("<think>never ends", "eos_token", ("", "empty")),
        ("<think>never ends", None, ("", "length")),
        (None, None, ("", "empty")),
    ],
)
def test_chat_replies(content, reason, expected):
    reply = parse_chat_reply(completion(content, reason))
    assert (reply.text, reply.finish_reason) == expected


def test_tokens_of_a_cache_count_as_read():
    assert tokens_read({"prompt_tokens": 5, "cache_read_input_tokens": 90}) == 95
    assert tokens_read({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 90}}) == 95
    assert tokens_read({"prompt_tokens": None}) is tokens_read("n/a") is None


NAMES = ["Ada Lovelace", "Bell", "Clock"]


@pytest.mark.parametrize(
    "reply",
    [
        '{"summary": "One line,\nand another.", "entities": ["Ada Lovelace", "Bell", "Clock"]}',
        '{"entities": ["Ada Lovelace", "Bell", "Clock"], "summary": "s"}\nI hope that {this} helps.',
        'As {asked}:\n```json\n{"entities": ["Ada Lovelace", "Bell", "Clock",], "summary": "s",}\n```\nDone.',
        '{"entities": [{"name": "Ada Lovelace", "type": "person"}, {"name": "Bell"}, {"name": "Clock"}]}',
        '{"entities": [{"entity": "Ada Lovelace"}, {"title": "Bell"}, "Clock"], "summary": "s"}',
        '{"entities": {"people": ["Ada Lovelace"], "things": ["Bell", {"name": "Clock"}]}, "summary": "s"}',
        '{"entities": ["Ada Lovelace", "Bell", "Clock", "Do',
        '{"entities": ["Ada Lovelace", "Bell", "Clock"], "summary": "It is said that',
        "{'entities': ['Ada Lovelace', 'Bell', 'Clock'], 'summary': 's'}",
        '{entities: ["Ada Lovelace", "Bell", "Clock"]}',
        '{"thought": "first"}\n{"entities": ["Ada Lovelace", "Bell", "Clock"]}',
        '{"entities": ["Ada Lovelace" "Bell"\n"Clock"], "summary": "s"}',
    ],
)
def test_lists_that_are_almost_json(reply):
    assert parse_list(reply)[1] == NAMES


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot list entities: the text is {unclear}, [incomplete] and short.",
    "Sure! The entities are: Ada, Bell and Clock.",
    '{"error": "I cannot comply with this request."}',
    '{"entities": "I cannot comply with this request."}',
    '{"entities": null, "summary": "I would rather not, as the text is private."}',
    '{"entities": [], "summary": "The text names nobody."}',
    "{I'm sorry, the entities: I can't name, places: none, objects: none}",
    'Answer with one JSON object with "entities": a list of names, and "summary".',
    '{"entities": {"reason": "no", "policy": "yes"}}',
    "1. Ada\n2. Bell\n3. Clock",
    "```json\n\n```",
    '{"entities": [1, 2, 3, 4]}',
    '{"entities": ["Ada", {"kind": "person"}, "Bell"]}',
]


@pytest.mark.parametrize("reply", REFUSALS)
def test_prose_is_not_read_as_a_list(reply):
    """json_repair invents nothing: 0 of these 14 replies become a list."""
    with pytest.raises(ValueError):
        parse_list(reply)


def test_the_first_object_with_the_key_counts():
    assert json_object_in('{"a": {"questions": 1}} {"questions": [2]}', "questions") == {"questions": [2]}
