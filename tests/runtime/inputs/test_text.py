"""How texts become arrays: prompts, tasks, chat templates, the side that is cut, tokens that are not pooled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from matexport.errors import RequestError
from matexport.runtime.batches import pack_batches
from matexport.runtime.inputs.modality import LEFT, list_ways
from matexport.runtime.inputs.text import TextInputs, Tokens, feed_rows, find_wrapping, tokenize_probes, tokenize_texts
from matexport.runtime.inputs.tokenizer import TextTokenizer, load_tokenizer
from matexport.spec.inputs import NO_LIMIT, ChatFacts, Frame, PaddingSide, TaskFacts, TextFacts
from matexport.spec.probe import Probe

WORDS = ["[PAD]", "[CLS]", "[SEP]", "a", "b", "c", "d", "query:", "<user>", "<end>"]
PROMPTS = {"query": "query: ", "none": ""}


def make_text(**changes: object) -> TextFacts:
    facts: dict[str, object] = {
        "inputs": ("input_ids", "attention_mask"),
        "max_tokens": 6,
        "padding_side": PaddingSide.RIGHT,
        "pad_token_id": 0,
        "prompts": PROMPTS,
    }
    return TextFacts(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def load(folder: Path, text: TextFacts) -> TextTokenizer:
    return load_tokenizer((folder / "tokenizer.json").read_bytes(), text)


def spell(folder: Path, text: TextFacts, item: str, **asked: str) -> list[str]:
    (row,) = tokenize_texts(
        load(folder, text),
        [item],
        asked.get("prompt"),
        task=asked.get("task"),
    )
    return [WORDS[token] for token in row.ids]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "[CLS] a b c d [SEP]"),
        ({"cuts": PaddingSide.LEFT}, "[CLS] c d a b [SEP]"),
        ({"special_tokens": False}, "a b c d a b"),
        ({"special_tokens": False, "cuts": PaddingSide.LEFT}, "a b c d a b"),
        ({"max_tokens": 3}, "[CLS] a [SEP]"),
        ({"max_tokens": 3, "cuts": PaddingSide.LEFT}, "[CLS] b [SEP]"),
        ({"max_tokens": NO_LIMIT}, "[CLS] a b c d a b [SEP]"),
    ],
)
def test_where_a_long_text_is_cut(changes: dict[str, object], expected: str, folder: Path) -> None:
    assert spell(folder, make_text(**changes), "a b c d a b") == expected.split()


def test_a_task_has_a_prompt_and_a_limit_of_its_own(folder: Path) -> None:
    tasks = {"query": TaskFacts("query", 4), "document": TaskFacts("", None)}
    text = make_text(tasks=tasks, default_prompt="query")
    assert spell(folder, text, "a b c d", task="query") == ["[CLS]", "query:", "a", "[SEP]"]
    assert spell(folder, text, "a b c d", task="document") == ["[CLS]", "a", "b", "c", "d", "[SEP]"]
    assert spell(folder, text, "a b c d") == ["[CLS]", "query:", "a", "b", "c", "[SEP]"]  # the default prompt
    assert spell(folder, text, "a b", prompt="") == ["[CLS]", "a", "b", "[SEP]"]
    assert spell(folder, text, "a b", prompt="none") == ["[CLS]", "a", "b", "[SEP]"]
    plain = make_text()  # a parent that makes no difference
    assert spell(folder, plain, "a b", task="query") == ["[CLS]", "a", "b", "[SEP]"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"task": "passage"}, "task 'passage' was asked; a text is one of: query, document"),
        ({"task": "query", "prompt": "none"}, "prompt 'none' and task 'query' were asked"),
        ({"prompt": "document"}, r"prompt 'document' was asked; .*: query, none \(as task 'document'"),
        ({"prompt": "other"}, "prompt 'other' was asked; the parent's prompts are: query, none$"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        find_wrapping(make_text(), asked.get("prompt"), asked.get("task"))


def test_a_chat_template_stands_around_a_text_and_its_end_stays(folder: Path) -> None:
    frames = {
        "": Frame("<user> ", " <end>", (9,)),
        "query": Frame("query: <user> ", " <end>", (9,)),
        "none": Frame("<user> ", " <end>", ()),
    }
    text = make_text(special_tokens=False, chat=ChatFacts(frames, strips="both"), max_tokens=4)
    assert spell(folder, text, "  a b ") == ["<user>", "a", "b", "<end>"]
    assert spell(folder, text, "a b c d") == ["<user>", "a", "b", "<end>"]  # written over what was cut off
    assert spell(folder, text, "a b c d", prompt="query") == ["query:", "<user>", "a", "<end>"]
    assert spell(folder, text, "a b c d", prompt="none") == ["<user>", "a", "b", "c"]
    assert spell(folder, text, "a") == ["<user>", "a", "<end>"]


@pytest.mark.parametrize(
    ("strips", "expected"), [("", "<  a >"), ("left", "<a >"), ("right", "<  a>"), ("both", "<a>")]
)
def test_a_template_may_take_white_space_off_either_end(strips: str, expected: str) -> None:
    frames = {"": Frame("<", ">"), "query": Frame("<", ">"), "none": Frame("<", ">")}
    wrapping = find_wrapping(make_text(chat=ChatFacts(frames, strips)), "")
    assert wrapping.around("  a ") == expected


def test_a_route_takes_its_own_tasks_alone() -> None:
    text = make_text(route="query", tasks={"query": TaskFacts("query")})
    assert find_wrapping(text, None, "query").before == "query: "
    with pytest.raises(RequestError, match="this family is the route 'query' of its parent"):
        find_wrapping(text, None, "document")


def test_tokens_of_a_prompt_may_not_be_pooled(folder: Path) -> None:
    inputs = ("input_ids", "attention_mask", "pooling_mask")
    text = make_text(inputs=inputs, unpooled={"query": 2}, max_tokens=NO_LIMIT)
    probes = [Probe("a b", "query"), Probe("c", None), Probe("a b c d")]
    rows = tokenize_probes(load(folder, text), probes)
    assert [row.unpooled for row in rows] == [2, 0, 0]
    feeds = feed_rows(rows, text)
    assert tuple(feeds) == inputs
    np.testing.assert_array_equal(feeds["pooling_mask"], [[0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6])
    np.testing.assert_array_equal(feeds["attention_mask"], [[1] * 5 + [0], [1, 1, 1, 0, 0, 0], [1] * 6])
    left = feed_rows(rows, text, PaddingSide.LEFT)
    np.testing.assert_array_equal(left["pooling_mask"], [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [1] * 6])
    (alone,) = feed_rows(rows[:1], text)["pooling_mask"]
    np.testing.assert_array_equal(alone, [0, 0, 1, 1, 1])


def test_a_probe_without_a_prompt_has_none_whatever_the_default(folder: Path) -> None:
    text = make_text(default_prompt="query", tasks={"query": TaskFacts(None, 4)})
    plain, asked = tokenize_probes(load(folder, text), [Probe("a b"), Probe("a b", task="query")])
    assert plain == Tokens([1, 3, 4, 2], [0, 0, 0, 0])
    assert asked.ids == [1, 7, 3, 2]


def test_a_limit_in_words() -> None:
    assert make_text().describe() == "up to 6 tokens"
    assert make_text(cuts=PaddingSide.LEFT).describe() == "up to 6 tokens, the last ones"
    assert make_text(max_tokens=NO_LIMIT).describe() == "texts of any length"


def test_a_text_that_the_library_gives_up_on_is_named(folder: Path) -> None:
    """A pattern that goes back without end: the library raises an exception of its own."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pattern = Regex(r"(a+)+$")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    made = load(folder, make_text(max_tokens=NO_LIMIT))
    assert len(tokenize_texts(made, ["b", "c"])) == 2
    with pytest.raises(RequestError, match=r"text 7 \('a+.*'\) cannot be tokenized: "):
        tokenize_texts(made, ["b", "a" * 60 + "!", "c"], first=6)


def test_padded_texts_are_as_long_as_all_are(folder: Path) -> None:
    """On either side, and masked; one of the limit has nothing to pad."""
    text = make_text(padded=True, max_tokens=8)
    inputs = TextInputs(load(folder, text))
    short, cut = inputs.prepare(["a b", "a b c d a b c d"])
    feeds = inputs.feed([short])
    np.testing.assert_array_equal(feeds["input_ids"], [[1, 3, 4, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(feeds["attention_mask"], [[1, 1, 1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(inputs.feed([short], LEFT)["attention_mask"], [[0, 0, 0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(inputs.feed([cut])["input_ids"], [[1, 3, 4, 5, 6, 3, 4, 2]])
    np.testing.assert_array_equal(inputs.feed([cut])["attention_mask"], [[1] * 8])
    with pytest.raises(RequestError, match="2 texts were given to one run; graphs of a fixed shape take one"):
        inputs.feed([short, cut])
    assert pack_batches([inputs.size(row) for row in (short, cut)], inputs.budget) == [[1], [0]]
    assert (text.dims, text.alone) == ((1, 8), True)
    assert list_ways(text) == {"batched": 1, "single": 1}
    assert list_ways(make_text(padded=True, padding_side=PaddingSide.LEFT)) == {"batched": 1, "single": 1, "left": 1}
