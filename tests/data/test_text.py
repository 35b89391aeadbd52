"""Text to token ids: .txt, .jsonl and .csv through a tokenizer of six words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeopt.data import InputSpec, open_data, readable
from edgeopt.errors import DataError, UsageError
from edgeopt.options.reading import Reading

tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4, "dog": 5}
I64 = np.dtype(np.int64)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer.json that splits at spaces and writes [CLS] ... [SEP]."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def inputs(length: int | None = None, dtype: type = np.int64, batch: int | None = 1) -> list[InputSpec]:
    return [
        InputSpec(name, np.dtype(dtype), (batch, length)) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]


def ids(name: str, content: str, tokenizer: Path, to: list[InputSpec] | None = None) -> list[list[int]]:
    """The token ids of every sample in the file `name` of `content`, in the file's order."""
    folder = tokenizer.parent / "texts"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8", newline="")
    found = open_data(folder, to or inputs(), Reading(tokenizer=tokenizer)).samples
    assert all(sample.startswith(str(folder / name)) for sample, _ in found)
    ordered = sorted(found, key=lambda sample: int(sample[0].rpartition(":")[2]))
    return [read()["input_ids"][0].tolist() for _, read in ordered]


CAT, DOG, BOTH = [2, 4, 3], [2, 5, 3], [2, 4, 5, 3]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT"])
def test_a_line_of_txt_is_a_sample(name: str, tokenizer: Path) -> None:
    assert ids(name, "cat\n\n  \ndog\r\ncat dog", tokenizer) == [CAT, DOG, BOTH]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL"])
def test_an_object_of_jsonl_is_a_sample(name: str, tokenizer: Path) -> None:
    lines = [{"label": 3, "text": "cat"}, {"sentence": "dog", "label": "x"}, "cat dog"]
    assert ids(name, "\n".join(map(json.dumps, lines)) + "\n\n", tokenizer) == [CAT, DOG, BOTH]


@pytest.mark.parametrize("name", ["a.csv", "a.CSV"])
def test_the_column_text_of_csv_is_the_sample(name: str, tokenizer: Path) -> None:
    assert ids(name, 'label,text\n1,cat\n2,"dog"\n3,\n4,"cat dog"\n', tokenizer) == [CAT, DOG, BOTH]


def test_without_a_column_text_the_first_one_is_the_sample(tokenizer: Path) -> None:
    assert ids("a.csv", "sentence,label\ncat,1\ndog,2\n", tokenizer) == [CAT, DOG]


def test_a_quoted_field_of_csv_may_hold_a_line_break(tokenizer: Path) -> None:
    assert ids("a.csv", 'text,label\n"cat\ndog",1\ndog,2\n', tokenizer) == [BOTH, DOG]


@pytest.mark.parametrize("space", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_of_jsonl_ends_at_a_newline_only(space: str, tokenizer: Path) -> None:
    line = json.dumps({"text": f"cat {space} dog"}, ensure_ascii=False)
    if space in "\x0b\x0c\x1c":  # JSON escapes these
        assert space not in line
    assert len(ids("a.jsonl", line + "\n", tokenizer)) == 1


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"text": "cat"}'), ("a.csv", "text\ncat\n"), ("a.txt", "cat")]
)
def test_a_byte_order_mark_is_no_text(name: str, content: str, tokenizer: Path) -> None:
    assert ids(name, "\ufeff" + content, tokenizer) == [CAT]


def test_unknown_words_are_unknown_tokens(tokenizer: Path) -> None:
    assert ids("a.txt", "cat mouse", tokenizer) == [[2, 4, 1, 3]]


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_fixed_length_is_padded_and_masked(dtype: type, tokenizer: Path) -> None:
    (tokenizer.parent / "a.txt").write_text("cat dog")
    ((_, read),) = open_data(tokenizer.parent / "a.txt", inputs(6, dtype), Reading(tokenizer=tokenizer)).samples
    feed = read()
    assert {k: x.tolist() for k, x in feed.items()} == {
        "input_ids": [[2, 4, 5, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0, 0, 0]],
    }
    assert {x.dtype for x in feed.values()} == {np.dtype(dtype)}


def test_a_free_length_is_not_padded_and_ends_at_128(tokenizer: Path) -> None:
    (long,) = ids("a.txt", "cat " * 500, tokenizer)
    assert long == [2, *[4] * 126, 3]


@pytest.mark.parametrize("length", [4, 3, 2])
def test_a_long_text_is_cut_to_a_fixed_length(length: int, tokenizer: Path) -> None:
    assert ids("a.txt", "cat dog cat", tokenizer, inputs(length)) == [[2, *[4, 5][: length - 2], 3]]


def test_a_tokenizer_that_pads_by_itself_is_told_not_to(tokenizer: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(tokenizer))
    made.enable_padding(length=32)
    made.enable_truncation(3)
    made.save(str(tokenizer))
    assert ids("a.txt", "cat dog", tokenizer) == [BOTH]


def test_a_model_with_fewer_inputs_gets_fewer(tokenizer: Path) -> None:
    (tokenizer.parent / "a.txt").write_text("cat")
    ((_, read),) = open_data(tokenizer.parent / "a.txt", inputs()[:1], Reading(tokenizer=tokenizer)).samples
    assert list(read()) == ["input_ids"]


def test_columns_of_one_name_are_not_confused(tokenizer: Path) -> None:
    assert ids("a.csv", "id,id,text\n1,2,cat\n3,4,dog\n", tokenizer) == [CAT, DOG]


def test_a_line_of_windows_ends_without_its_carriage_return(tokenizer: Path) -> None:
    found = open_data(_file(tokenizer, "a.txt", "cat\r\ndog\r\n"), inputs(), Reading(tokenizer=tokenizer)).samples
    assert [read.args[0] for _, read in sorted(found)] == ["cat", "dog"]


def test_quotes_in_a_file_of_tabs_are_text(tokenizer: Path) -> None:
    assert len(ids("a.tsv", 'id\ttext\n1\t"cat\n2\tdog\n', tokenizer)) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", 'text\tlabel\n"a ""quoted"" text"\t1\n"two\nlines"\t0\n', ['a "quoted" text', "two\nlines"]),
        ("a.csv", "great movie,1\nbad film indeed,0\n", ["great movie", "bad film indeed"]),
        ("a.csv", "Excellent\nvery good movie\nbad\nnice one\n", ["Excellent", "very good movie", "bad", "nice one"]),
        ("a.csv", "text,text\n,cat\n,dog\n", ["cat", "dog"]),
    ],
    ids=["quoted tabs", "no header", "one column", "an empty twin"],
)
def test_the_texts_are_these(name: str, content: str, expected: list[str], tokenizer: Path) -> None:
    column = "1" if "great" in content else None
    found = open_data(_file(tokenizer, name, content), inputs(), Reading(tokenizer=tokenizer, column=column)).samples
    order = sorted(found, key=lambda sample: int(sample[0].rpartition(":")[2]))
    assert [read.args[0] for _, read in order] == expected


def test_a_row_without_the_column_that_was_said_is_unreadable(tokenizer: Path) -> None:
    lines = (
        [json.dumps({"body": "cat"})] * 60 + [json.dumps({"id": "dog"})] + [json.dumps({"body": "cat", "late": "dog"})]
    )
    path = _file(tokenizer, "a.jsonl", "\n".join(lines))
    feeds, problems = readable(open_data(path, inputs(), Reading(tokenizer=tokenizer, column="body")).samples)
    assert len(feeds) == 61 and ["a field 'body'" in p for p in problems.values()] == [True]
    late = Reading(tokenizer=tokenizer, column="late")
    with pytest.raises(DataError, match="61 of the 62"):
        open_data(path, inputs(), late)


def _file(tokenizer: Path, name: str, content: str) -> Path:
    (tokenizer.parent / name).write_bytes(content.encode())
    return tokenizer.parent / name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_that_of_the_tokenizer(side: str, tokenizer: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(tokenizer))
    made.enable_padding(pad_id=5, pad_token="dog", direction=side, length=64)
    made.save(str(tokenizer))
    pads = [5, 5, 5]
    wanted = pads + CAT if side == "left" else CAT + pads
    assert ids("a.txt", "cat", tokenizer, inputs(6)) == [wanted]


def test_a_tokenizer_without_padding_pads_with_the_token_called_so(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "<pad>": 1, "cat": 2}, unk_token="<s>"))
    made.save(str(tmp_path / "tokenizer.json"))
    assert ids("a.txt", "cat", tmp_path / "tokenizer.json", inputs(3)) == [[2, 1, 1]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("idx,sentence,label\n0,cat,1\n1,cat dog,0\n", [CAT, BOTH]),
        ("idx;label;words\n0;1;cat\n1;0;cat dog\n", [CAT, BOTH]),
        ("0,cat dog,1\n1,dog,0\n", [BOTH, DOG]),
        ("7\tcat\n8\tdog cat\n", [CAT, [2, 5, 4, 3]]),
        ("cat dog\ncat\n", [BOTH, CAT]),
    ],
    ids=["GLUE", "semicolons", "no header", "tabs", "one column"],
)
def test_the_column_of_text_is_found(content: str, expected: list[list[int]], tokenizer: Path) -> None:
    assert ids("a.csv", content, tokenizer) == expected


def test_the_column_is_told_and_can_be_chosen(tokenizer: Path) -> None:
    folder = tokenizer.parent / "texts"
    folder.mkdir()
    (folder / "a.csv").write_text("question,answer\ncat,dog\n")
    (folder / "b.jsonl").write_text('{"id": "row cat", "question": "cat", "answer": "dog"}\n')
    plain = open_data(folder, inputs(), Reading(tokenizer=tokenizer))
    assert "text: column 'question' of a.csv" in plain.notes and "text: field 'question' of b.jsonl" in plain.notes
    chosen = open_data(folder, inputs(), Reading(tokenizer=tokenizer, column="answer"))
    assert [read()["input_ids"][0].tolist() for _, read in chosen.samples] == [DOG, DOG]
    with pytest.raises(UsageError, match=r"--column answr: no such (column|field).*answer"):
        open_data(folder, inputs(), Reading(tokenizer=tokenizer, column="answr"))


def test_one_bad_line_of_many_is_one_unreadable_sample(tokenizer: Path) -> None:
    lines = [json.dumps({"text": "cat"})] * 40 + ["{torn", '{"text": "\\ud800"}']
    (tokenizer.parent / "a.jsonl").write_text("\n".join(lines))
    found = open_data(tokenizer.parent / "a.jsonl", inputs(), Reading(tokenizer=tokenizer)).samples
    feeds, problems = readable(found)
    assert len(feeds) == 40 and len(problems) == 2
    assert any("41: not JSON" in p for p in problems.values()) and any("42: no text" in p for p in problems.values())


def test_an_endless_line_is_not_read_whole(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.data.text._LONGEST_LINE", 64)
    (tokenizer.parent / "a.txt").write_text("\n".join(["cat"] * 30 + ["cat " * 1000] + ["dog"]))
    feeds, problems = readable(open_data(tokenizer.parent / "a.txt", inputs(), Reading(tokenizer=tokenizer)).samples)
    assert len(feeds) == 31 and ["a line of more than 64 characters" in p for p in problems.values()] == [True]


# refusals


def test_a_length_that_does_not_hold_the_special_tokens_is_refused(tokenizer: Path) -> None:
    with pytest.raises((DataError, UsageError), match="input_ids"):
        ids("a.txt", "cat", tokenizer, inputs(1))


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat")
    with pytest.raises(UsageError, match="--tokenizer"):
        open_data(tmp_path, inputs(), Reading())


def test_an_input_that_is_no_token_is_refused_by_name(tokenizer: Path) -> None:
    with pytest.raises(UsageError, match="pixels"):
        ids("a.txt", "cat", tokenizer, [InputSpec("pixels", I64, (1, None))])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "no json",
        '{"model": null}',
        '{"model": {}}',
        '{"model": "type"}',
        '{"model": {"type": "BPE"}}',
        '{"model": {"type": "Nonsense"}}',
        '{"model": {"type": "WordLevel", "vocab": {"cat": 0}}}',
        "[" * 100_000,
    ],
    ids=lambda c: c[:50],
)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(content)
    (tmp_path / "a.txt").write_text("cat")
    with pytest.raises(UsageError, match=r"own\.json"):
        open_data(tmp_path / "a.txt", inputs(), Reading(tokenizer=tmp_path / "own.json"))


@pytest.mark.parametrize("place", ["nowhere.json", "."])
def test_a_tokenizer_that_is_not_there_is_refused_by_name(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat")
    with pytest.raises(UsageError, match="--tokenizer"):
        open_data(tmp_path / "a.txt", inputs(), Reading(tokenizer=tmp_path / place))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"{not json\n"),
        ("a.jsonl", b"[1]\n"),
        ("a.jsonl", b'{"text": 3}\n'),
        ("a.jsonl", b'{"label": 3}\n'),
        ("a.jsonl", b"null\n"),
        ("a.jsonl", b"[" * 100_000),
        ("a.txt", b"\xff\xfe\x00"),
        ("a.csv", b"text\n\xff\n"),
        ("a.csv", b'text\n"' + b"cat " * 50_000 + b'"\n'),
    ],
    ids=["no json", "list", "number", "no text", "null", "deep", "bytes", "csv bytes", "csv field"],
)
def test_a_text_that_cannot_be_read_is_refused_by_name(name: str, content: bytes, tokenizer: Path) -> None:
    (tokenizer.parent / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_data(tokenizer.parent / name, inputs(), Reading(tokenizer=tokenizer))


@pytest.mark.parametrize(("name", "content"), [("a.txt", "\n \n"), ("a.csv", ""), ("a.csv", "text\n"), ("a.jsonl", "")])
def test_a_text_without_a_line_is_refused_by_name(name: str, content: str, tokenizer: Path) -> None:
    with pytest.raises(DataError, match="texts"):
        ids(name, content, tokenizer)
