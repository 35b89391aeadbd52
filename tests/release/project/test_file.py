"""The project file: every line of it mis-typed in turn, with the line and the meant name in the message; and what it
takes.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import UsageError
from edgeopt.release.project import file as projects
from edgeopt.release.project.file import Project, find, in_order, load, schema
from edgeopt.release.project.starter import starter
from tests.release.schemas import mistakes

FULL = """\
name = "digits"
model = "model.onnx"

[data]
path = "images"
eval = "held_out"
samples = 64
preprocess = "unit"
tokenizer = "tokenizer.json"
column = "text"
sample_rate = 16000
sample_seed = 1
resize = 256
crop = [224, 224]
scale = 0.5
mean = [0.5]
std = [0.25]
layout = "NCHW"
color = "rgb"
exif = "ignore"

[variants.weights]
steps = [{ step = "weights", bits = 8, exclude = ["a"] }]

[variants.fp16]
from = "small"

[[variants.fp16.steps]]
step = "simplify"
transformer = "bert"
backend = "onnxruntime"

[[variants.fp16.steps]]
step = "fp16"
keep = ["Softmax"]
io_types = "keep"

[variants.small]
steps = [{ step = "shrink", width = 0.5, depth = 1.0, rank = 0.5, importance = "norm", dims = { batch = 2 } }, { step = "shrink", to = "30% macs", steps = 2, widths = "global", cost = "time", importance = "first-order", minutes = 1.0, learning_rate = 0.1, augment = ["flip"] }, { step = "distill", epochs = 3, batch_size = 4, learning_rate = 0.1, minutes = 1.5, seed = 3, teacher = "big.onnx", loss = "auto", hints = { inner = "other" }, hint_weight = 1.5, batch_norm = "frozen", label_smoothing = 0.1, unlabelled = "more" }, { step = "distill", kind = "online", peers = ["peer.onnx"] }]

[[variants.own.steps]]
step = "python"
call = "mine:step"

[variants.again]
from = "small"

[[variants.again.steps]]
step = "distill"
kind = "self"
by = "generations"
generations = 2
heads = ["block"]
temperature = 2.5
alpha = 0.5
match = { logits = "output" }
class_axes = { logits = 1 }
student_classes = "a.txt"
teacher_classes = "b.txt"
patience = 2
accumulate = 2
optimizer = "sgd"
warm_up = 0.1
clip = 1.5
momentum = 0.5
weight_decay = 0.1
ema = 0.5
augment = ["flip", "crop"]
freeze = ["stem*"]
train = ["bias"]
samples = 100
qat = true
target = "host"

[variants.int8]
from = "small"

[[variants.int8.steps]]
step = "quantize"
mode = "static"
effort = "fast"
target = "cpu-arm64"
range = "mse"
rounding = "gptq"
clip_weights = true
prefer = "balanced"
kinds = { logits = "classes" }
equalize = true
refit = true
smooth = 0.5
exclude = ["Softmax"]
include = ["Conv"]
budget_s = 60.0
costs = "costs.json"
qat = false
qat_minutes = 5.0
qat_epochs = 2
bits = 8
keep = ["Softmax"]
io_types = "keep"
io = "quantized"
input_image = "uint8"

[profile]
measure = false
preset = "pr"
providers = ["cpu"]
threads = [1]

[profile.dims]
batch = 1

[accuracy]
labels = true
eval = "package.module:function"

[gates."*"]
size.file = { max = "6 MB" }

[gates.int8]
"size.download" = { max = "5 MB" }
latency.p50 = { max = "15 ms", warn = "12 ms", max_regression = "5 %" }
speedup = { min = 1.2 }

[gates.int8.accuracy.agreement]
min = "95 %"
max_drop = "1 pp"

[policy]
inconclusive = "warn"
not_measured = "fail"
no_baseline = "pass"

[baseline]
folder = "kept"

[output]
folder = "build/edgeopt"
html = true
ort = false
"""  # noqa: E501
NAMES = re.compile(r'^\[+([^\]]*?)\]+|^("?[\w.]+"?) =|[{,] (\w+) =')
MINIMAL = 'model = "model.onnx"\n[data]\npath = "x"\n[variants.a]\nsteps = [{ step = "fp16" }]\n'
FREE = {
    "tool",
    "edgeopt",
    "weights",
    "fp16",
    "small",
    "int8",
    "*",
    "batch",
    "again",
    "logits",
    "inner",
    "own",
}  # names that are the user's own


def told(text: str, folder: Path, name: str = "edgeopt.toml") -> str:
    """What `load` says against `text`; fails if it takes it."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as e:
        load(file)
    return str(e.value)


def lines_told(message: str) -> list[int]:
    """The line numbers in a message, one a mistake."""
    return [int(n) for n in re.findall(r"edgeopt\.toml:(\d+): ", message)]


def keys() -> Iterator[tuple[int, int, str]]:
    """(line, column, name) of every word of every key and header of FULL that the schema knows."""
    for number, line in enumerate(FULL.splitlines(), 1):
        for key in NAMES.finditer(line):
            i = key.lastindex or 0
            for word in re.finditer(r"[\w*]+", key[i]):
                if word[0] not in FREE:
                    yield number, key.start(i) + word.start(), word[0]


KEYS = list(keys())


def values() -> Iterator[tuple[int, str, str]]:
    """(line, key, value) of every pair of FULL, those in inline tables too."""
    for number, line in enumerate(FULL.splitlines(), 1):
        for found in re.finditer(r'("?[\w.]+"?) = ("[^"]*"|\[[^\[\]{}]*\]|[\w.]+)(?=[ ,}]|$)', line):
            yield number, found[1], found[2]


VALUES = list(values())
BOUNDS = ("min", "max", "warn", "max_regression", "max_drop")
FIRST_BARE = FULL.splitlines().index("speedup = { min = 1.2 }")


def wrong(value: str) -> list[str]:
    """Values of other types than `value` has."""
    kind = type(tomllib.loads(f"x = {value}")["x"])
    texts = {
        str: '"word"',
        bool: "true",
        int: "7",
        float: "1.5",
        list: "[[1]]",
        dict: "{ a = 1 }",
        object: "1979-05-27",
    }
    allowed = {str: {str}, bool: {bool}, int: {int}, float: {int, float}, list: {list}}[kind]
    return [text for other, text in texts.items() if other not in allowed]


def test_the_full_file_is_taken_and_names_every_key_of_every_table() -> None:
    parsed = tomllib.loads(FULL)
    found = Project.model_validate(parsed)
    steps = [s for v in found.variants.values() for s in v.steps]
    tables = [found.data, found.profile, found.accuracy, found.policy, found.baseline, found.output, *steps]
    written = {name for _, _, name in KEYS}
    for table in tables:
        missing = {f.alias or n for n, f in type(table).model_fields.items()} - written
        assert not missing - {"keep"}, type(table).__name__


@pytest.mark.parametrize(("line", "column", "name"), KEYS, ids=[f"{n}:{c}:{k}" for n, c, k in KEYS])
def test_a_key_without_one_of_its_characters_is_told_with_its_line_and_what_was_meant(
    line: int, column: int, name: str, tmp_path: Path
) -> None:
    for drop in {1, len(name) // 2, len(name) - 1}:
        rows = FULL.splitlines()
        text = rows[line - 1]
        near = name[:drop] + name[drop + 1 :]
        rows[line - 1] = text[:column] + near + text[column + len(name) :]
        if f"{near} =" in text or f" {near} " in text:
            continue
        message = told("\n".join(rows), tmp_path)
        if name == "step":
            assert "a step needs its name" in message and lines_told(message)[0] in (line, line - 1)
            continue
        own = [row for row in message.splitlines() if "did you mean" in row]
        place = f"edgeopt.toml:{line}: "
        assert any(row.startswith(str(tmp_path / place)) for row in own), (near, message)
        assert any(f"'{name}" in row or f".{name}" in row for row in own), (near, message)


@pytest.mark.parametrize(("line", "key", "value"), VALUES, ids=[f"{n}:{k}" for n, k, _ in VALUES])
def test_a_value_of_another_type_is_told_with_its_line_and_key(line: int, key: str, value: str, tmp_path: Path) -> None:
    taken = []
    for other in wrong(value):
        if (key == "max_regression" or line > FIRST_BARE) and other in ("7", "1.5") and key in BOUNDS:
            continue  # a bare number says enough there
        rows = FULL.splitlines()
        rows[line - 1] = rows[line - 1].replace(f"{key} = {value}", f"{key} = {other}", 1)
        try:
            message = told("\n".join(rows), tmp_path)
        except pytest.fail.Exception:
            taken.append(other)
            continue
        assert {line, line - (key == "step")} & set(lines_told(message)), (other, message)
        assert key.strip('"').split(".")[0] in message
    assert not taken, f"{key} = {value} may be {taken}"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('effort = "fast"', 'effort = "fats"', "effort"),
        ('mode = "static"', 'mode = "statc"', "mode"),
        ('range = "mse"', 'range = "mes"', "mse"),
        ('target = "cpu-arm64"', 'target = "cpu-arm46"', "cpu-arm64"),
        ('preprocess = "unit"', 'preprocess = "unti"', "unit"),
        ('loss = "auto"', 'loss = "aut"', "auto"),
        ("width = 0.5", "width = 0.0", "width"),
        ("width = 0.5", "width = nan", "width"),
        ("smooth = 0.5", "smooth = 1.5", "smooth"),
        ("samples = 64", "samples = 0", "samples"),
        ("epochs = 3", "epochs = -1", "epochs"),
        ("budget_s = 60.0", "budget_s = inf", "budget_s"),
        ("bits = 8", "bits = 5", "bits"),
        ("threads = [1]", "threads = [0]", "threads"),
        ("threads = [1]", "threads = []", "threads"),
        ('providers = ["cpu"]', "providers = []", "providers"),
        ("batch = 1", "batch = 0", "batch"),
        ('path = "images"', 'path = ""', "path"),
        ('step = "quantize"', 'step = "quantise"', "quantize"),
        ('step = "simplify"', 'step = "simplfy"', "simplify"),
        ('step = "shrink"', 'step = "shrnk"', "shrink"),
        ('inconclusive = "warn"', 'inconclusive = "ignore"', "inconclusive"),
        ('preset = "pr"', 'preset = "slow"', "preset"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_told_with_its_line(old: str, new: str, part: str, tmp_path: Path) -> None:
    line = next(i for i, row in enumerate(FULL.splitlines(), 1) if old in row)
    message = told(FULL.replace(old, new), tmp_path)
    assert {line, line - old.startswith("step")} & set(lines_told(message)) and part in message


def test_a_key_without_its_value_or_a_table_without_its_bracket_is_told_with_the_line(tmp_path: Path) -> None:
    for number, row in enumerate(FULL.splitlines(), 1):
        if row:
            rows = FULL.splitlines()
            rows[number - 1] = row[:-1] if row.startswith("[") else row.split("=")[0]
            message = told("\n".join([*rows, "x = 1\n"]), tmp_path)
            assert re.search(rf"edgeopt\.toml:{number}: |line {number}, ", message), message


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ('size.fil = { max = "6 MB" }', "did you mean 'size.file'"),
        ('size.file = { max = "6 ms" }', "write e.g. \"6 MB\""),
        ("size.file = { max = 6 }", "has no unit"),
        ('latency.p50 = { max = "6 MB" }', "write e.g. \"15 ms\""),
        ('latency.p50 = { max_regression = "5 ms" }', "write e.g. \"95 %\""),
        ('latency.p50 = { warn = "5" }', "write e.g."),
        ('latency.p50 = { min = "5 ms" }', "lower is better"),
        ('speedup = { max = "1.2 x" }', "higher is better"),
        ('quant.sqnr = { max = "10 dB" }', "higher is better"),
        ('accuracy.top1 = { max = "10 %" }', "higher is better"),
        ('quant.sqnr = { max_drop = "10 dB" }', "of accuracy metrics only"),
        ("speedup = {}", "without a bound"),
        ("speedup = 1.2", "speedup"),
        ('speedup = { mim = "1 x" }', "did you mean 'min'"),
        ("ep.partitions = { max = nan }", "ep.partitions"),
        ("accuracy.eval = { min = inf }", "accuracy.eval"),
        ("accuracy.eval = { min = nan }", "accuracy.eval"),
        ("accuracy.eval = { min = true }", "accuracy.eval"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["dotted", "quoted", "table", "inside"])
def test_a_gate_that_cannot_be_judged_is_told_with_its_line(gate: str, says: str, form: str, tmp_path: Path) -> None:
    name, _, bounds = gate.partition(" = ")
    inner = bounds.strip("{} ")
    text = {
        "dotted": f"[gates.a]\n{gate}",
        "quoted": f'[gates."a"]\n"{name}" = {bounds}',
        "table": f"[gates.a.{name}]\n{inner}",
        "inside": f'[gates]\na."{name}" = {bounds}',
    }[form]
    if form == "table" and not bounds.startswith("{"):
        return
    lines = [7] if form == "table" and not inner else [7, 8] if form == "table" else [8]
    message = told(MINIMAL + "# a comment\n" + text + "\n", tmp_path)
    assert says in message and set(lines_told(message)) <= set(lines), message


@pytest.mark.parametrize("form", ["[gates.{}]\nspeedup = {{ min = 1 }}", "[gates]\n{}.speedup = {{ min = 1 }}"])
def test_gates_of_a_variant_that_is_not_there_are_told_with_the_line_and_what_was_meant(
    form: str, tmp_path: Path
) -> None:
    text = MINIMAL.replace("variants.a", "variants.int8") + form.format("int")
    message = told(text, tmp_path)
    assert lines_told(message)[0] >= 6 and "did you mean 'int8'" in message


@pytest.mark.parametrize(
    ("table", "line", "says"),
    [
        ('[variants.b]\nfrom = "aa"\nsteps = [{ step = "fp16" }]', 7, "did you mean 'a'"),
        ('[variants.b]\nfrom = "flot"\nsteps = [{ step = "fp16" }]', 7, "did you mean 'float'"),
        ('[variants.b]\nfrom = "b"\nsteps = [{ step = "fp16" }]', 7, "b"),
        (
            (
                '[variants.b]\nfrom = "c"\nsteps = [{ step = "fp16" }]\n[variants.c]\nfrom = "b"\nsteps = [{ step ='
                ' "fp16" }]'
            ),
            7,
            "made from each other: b, c",
        ),
        ('[variants.float]\nsteps = [{ step = "fp16" }]', 6, "float"),
        ('[variants."a b"]\nsteps = [{ step = "fp16" }]', 6, "a b"),
        ('[variants."../a"]\nsteps = [{ step = "fp16" }]', 6, "../a"),
        ('[variants.""]\nsteps = [{ step = "fp16" }]', 6, "name"),
        ('[variants."a\\nb"]\nsteps = [{ step = "fp16" }]', 6, "name"),
        ('[variants."a<b&"]\nsteps = [{ step = "fp16" }]', 6, "name"),
        ("[variants.b]\nsteps = []", 7, "steps"),
        ("[variants.b]\nsteps = [{}]", 7, "step"),
        ('[variants.b]\nsteps = [{ effort = "fast" }]', 7, "step"),
        ('[variants.b]\nsteps = ["quantize"]', 7, "step"),
        ('[variants.b]\nsteps = { step = "quantize" }', 7, "steps"),
        ("[variants.b]", 6, "steps"),
    ],
)
def test_a_variant_that_cannot_be_made_is_told_with_its_line(table: str, line: int, says: str, tmp_path: Path) -> None:
    message = told(MINIMAL + table + "\n", tmp_path)
    assert says in message
    assert len(lines_told(message)) == 1 and lines_told(message)[0] in (6, line), message  # the key, or its table


@pytest.mark.parametrize("variant", ["quantize", "weights", "fp16", "simplify", "0", "a.b", "v1.2-x_y"])
def test_a_variant_called_as_a_step_still_has_its_mistakes_told_with_what_was_meant(
    variant: str, tmp_path: Path
) -> None:
    for row, meant in (
        ('stepss = [{ step = "fp16" }]', "steps"),
        ('steps = [{ step = "quantize", efort = "fast" }]', "effort"),
    ):
        text = f'model = "m"\n[data]\npath = "x"\n[variants."{variant}"]\n{row}\n'
        message = told(text, tmp_path)
        own = [x for x in message.splitlines() if "no such key" in x]
        assert f"did you mean '{meant}'" in own[0] and lines_told(own[0]) == [5], message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "data"),
        ("# nothing\n", "data"),
        ('model = "m"\n', "data"),
        (MINIMAL.replace('model = "model.onnx"\n', ""), "name a model"),
        (MINIMAL + '[export]\nfactory = "a:b"\ninputs = { x = [1, 3] }\n', "not both"),
        (MINIMAL.replace("[variants.a]\n", "[variants]\n"), "variants"),
        (MINIMAL.replace('path = "x"', ""), "data.path"),
        ('model = "a"\nmodel = "b"\n', "line 2"),
        ("data = 5\n" + MINIMAL.replace("[data]\npath", "data2"), "data"),
    ],
)  # fmt: skip
def test_a_file_with_too_little_or_too_much_is_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    assert says in told(text, tmp_path)


def test_two_ways_of_writing_one_gate_are_merged_or_refused_and_none_is_lost(tmp_path: Path) -> None:
    text = MINIMAL + '[gates.a]\nsize.file = { max = "1 MB" }\n"size.file" = { warn = "0.5 MB" }\n'
    (tmp_path / "edgeopt.toml").write_text(text)
    try:
        gate = load(tmp_path / "edgeopt.toml").gates["a"]["size.file"]
    except UsageError as e:
        assert "size.file" in str(e)
        return
    assert (gate.max, gate.warn) == ("1 MB", "0.5 MB")


def test_dotted_and_quoted_gates_are_the_same(tmp_path: Path) -> None:
    dotted = Project.model_validate(
        tomllib.loads(MINIMAL + '[gates.a]\nsize.file = { max = "1 MB" }\nsize.download = { max = "2 MB" }\n')
    )
    quoted = Project.model_validate(
        tomllib.loads(MINIMAL + '[gates.a]\n"size.file" = { max = "1 MB" }\n"size.download".max = "2 MB"\n')
    )
    tables = Project.model_validate(
        tomllib.loads(MINIMAL + '[gates.a.size.file]\nmax = "1 MB"\n[gates.a.size]\ndownload.max = "2 MB"\n')
    )
    assert dotted == quoted == tables and set(dotted.gates["a"]) == {"size.file", "size.download"}


def test_keys_are_only_known_by_their_published_names(tmp_path: Path) -> None:
    for old, new in (("from = ", "parent = "), ("range = ", "range_rule = ")):
        assert "no such key" in told(FULL.replace(old, new, 1), tmp_path)


def in_pyproject(text: str) -> str:
    """The file `text` as tables of pyproject.toml."""
    inner = re.sub(r"^(\[+)", r"\1tool.edgeopt.", text, flags=re.MULTILINE)
    return '[project]\nname = "app"\nmodel = 5\n\n[tool.other]\nsamples = "x"\n\n[tool.edgeopt]\n' + inner


def test_tables_in_pyproject_mean_the_same_and_mistakes_have_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(in_pyproject(FULL))
    assert load(file) == Project.model_validate(tomllib.loads(FULL))
    for old, new in (
        ("samples = 64", "sample = 64"),
        ("samples = 64", 'samples = "x"'),
        ("html = true", "htm = true"),
        ("speedup = { min = 1.2 }", "speedup = { max = 1.2 }"),
    ):
        text = in_pyproject(FULL).replace(old, new)
        line = max(i for i, row in enumerate(text.splitlines(), 1) if row == new)
        assert told(text, tmp_path, "pyproject.toml").startswith(f"{file}:{line}: ")


@pytest.mark.parametrize(
    "text",
    ["", "tool = 5\n", "[tool]\nedgeopt = 5\n", "tool = []\n", "[tool.edgeopt]\n", "[tool.edgeop]\nx = 1\n", "x"],
)
def test_a_pyproject_without_a_project_is_refused_in_words(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "pyproject.toml" in told(text, tmp_path, "pyproject.toml")
    monkeypatch.chdir(tmp_path)
    try:
        find(None)
    except UsageError as e:
        assert "toml" in str(e)


def test_the_project_file_is_found_before_pyproject_and_pyproject_only_with_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="edgeopt init"):
        find(None)
    Path("pyproject.toml").write_text('[project]\nname = "a"\n')
    with pytest.raises(UsageError, match="edgeopt init"):
        find(None)
    Path("pyproject.toml").write_text(in_pyproject(MINIMAL))
    assert find(None) == Path("pyproject.toml")
    Path("edgeopt.toml").write_text(MINIMAL)
    assert find(None) == Path("edgeopt.toml")
    with pytest.raises(UsageError, match="no such project file"):
        find(Path("other.toml"))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe" + MINIMAL.encode("utf-16-le"),
        MINIMAL.encode("utf-16"),
        b'name = "\xe9"\n' + MINIMAL.encode(),
        b"\x00" * 100,
        b"PK\x03\x04",
        b"x = " + b"[" * 5000 + b"]" * 5000,
        b"x = " + b"{a=" * 3000 + b"1" + b"}" * 3000,
        b"a" + b".a" * 5000 + b" = 1",
        b"x = " + b"9" * 5000,
        b'name = "\\ud800"\n',
        b"[" * 100_000,
    ],
    ids=[
        "BOM-16",
        "UTF-16",
        "latin-1",
        "zeros",
        "zip",
        "deep arrays",
        "deep tables",
        "deep keys",
        "huge number",
        "surrogate",
        "brackets",
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "edgeopt.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"edgeopt\.toml"):
        load(file)


def test_a_byte_order_mark_as_windows_editors_write_it_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "edgeopt.toml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load(file) == Project.model_validate(tomllib.loads(MINIMAL))


def test_a_mistake_is_told_in_the_words_of_toml(tmp_path: Path) -> None:
    text = MINIMAL.replace('{ step = "fp16" }', '{ step = "distill", teacher = 3 }')
    message = told(text, tmp_path)
    assert lines_told(message) == [5] and message.endswith("teacher: Input should be an array")


def test_a_step_that_learns_from_itself_has_no_teacher(tmp_path: Path) -> None:
    text = MINIMAL.replace('{ step = "fp16" }', '{ step = "distill", kind = "self", teacher = "big.onnx" }')
    message = told(text, tmp_path)
    assert lines_told(message) == [5] and "teacher" in message


@pytest.mark.parametrize(
    ("metric", "need"),
    [("accuracy.top1", "labels"), ("accuracy.top5", "labels"), ("accuracy.eval", "eval")],
)
def test_a_gate_on_an_accuracy_that_is_not_asked_for_is_refused_with_its_line(
    metric: str, need: str, tmp_path: Path
) -> None:
    message = told(f'{MINIMAL}[gates."*"]\n{metric} = {{ min = 0.5 }}\n', tmp_path)
    assert lines_told(message) == [7] and f"needs accuracy.{need} = " in message
    given = 'labels = true\neval = "package.module:function"'
    (tmp_path / "edgeopt.toml").write_text(f'{MINIMAL}[gates."*"]\n{metric} = {{ min = 0.5 }}\n[accuracy]\n{given}\n')
    load(tmp_path / "edgeopt.toml")


def test_a_mistake_at_the_end_of_a_huge_file_is_told_within_seconds(tmp_path: Path) -> None:
    gates = "".join(f'[gates.v{i}]\nsize.file = {{ max = "1 MB" }}\n' for i in range(2000))
    variants = "".join(f'[variants.v{i}]\nsteps = [{{ step = "fp16" }}]\n' for i in range(2000))
    text = 'model = "m"\n[data]\npath = "x"\n' + variants + gates + "[output]\nhtml = 3\n"
    assert lines_told(told(text, tmp_path)) == [len(text.splitlines())]


def test_a_folder_or_a_missing_file_is_no_project(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            load(path)


NAME = st.text("abc", min_size=1, max_size=2)


@given(st.dictionaries(NAME, NAME | st.just("float"), min_size=1, max_size=6))
def test_the_order_of_variants_has_each_after_its_parent_or_there_is_a_cycle(parents: dict[str, str]) -> None:
    known = {
        n: projects.Variant.model_validate({"from": p, "steps": [{"step": "fp16"}]})
        for n, p in parents.items()
        if p == "float" or p in parents
    }
    known = {n: v for n, v in known.items() if v.parent == "float" or v.parent in known}

    def ends(name: str) -> bool:
        seen = set()
        while name != "float":
            if name in seen or name not in known:
                return False
            seen.add(name)
            name = known[name].parent
        return True

    if all(ends(n) for n in known):
        order = in_order(known)
        assert sorted(order) == sorted(known)
        assert all(known[n].parent == "float" or order.index(known[n].parent) < i for i, n in enumerate(order))
    else:
        with pytest.raises(ValueError, match="made from each other"):
            in_order(known)


# the published schema

SCHEMA = json.loads(json.dumps(schema()))
TAKEN = set(mistakes(tomllib.loads(FULL), SCHEMA))


def test_the_schema_is_json_and_takes_the_full_file_the_minimal_one_and_what_init_writes() -> None:
    for text in (FULL, MINIMAL, starter("model.onnx", "model", "images", 10**6)):
        assert list(mistakes(tomllib.loads(text), SCHEMA)) == []


@pytest.mark.parametrize(("line", "key", "value"), VALUES, ids=[f"{n}:{k}" for n, k, _ in VALUES])
def test_what_the_schema_refuses_the_reader_refuses(line: int, key: str, value: str) -> None:
    for other in wrong(value):
        rows = FULL.splitlines()
        rows[line - 1] = rows[line - 1].replace(f"{key} = {value}", f"{key} = {other}", 1)
        parsed: dict[str, Any] = tomllib.loads("\n".join(rows))
        if set(mistakes(parsed, SCHEMA)) - TAKEN:
            with pytest.raises(ValueError):
                Project.model_validate(parsed)
