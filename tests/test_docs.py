"""README and docs: every command in them is run, tables of options are whole, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from edgeopt.options import Options

HERE = Path(__file__).parent.parent
DIGITS = HERE / "calibration_data" / "digits"
DOCS = sorted((HERE / "docs").glob("*.md"))
PAGES = [HERE / "README.md", HERE / "CONTRIBUTING.md", *DOCS]
FENCE = re.compile(r"^(?P<skip><!-- not run: (?P<why>.+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MOST_LINES, README_LINES, README_WORDS = 250, 60, 450


@dataclass(frozen=True)
class Block:
    """A fence. why: it is not run, empty where it is."""

    page: Path
    number: int
    kind: str
    text: str
    why: str

    @property
    def name(self) -> str:
        return f"{self.page.name}-{self.number}"


def blocks(kind: str) -> list[Block]:
    return [
        Block(page, i, m["kind"], m["text"], m["why"] or "")
        for page in PAGES
        for i, m in enumerate(FENCE.finditer(page.read_text(encoding="utf-8")), 1)
        if m["kind"] == kind
    ]


def commands(block: Block) -> list[str]:
    """The lines behind `$ `, with those that go on with a backslash."""
    joined = block.text.replace("\\\n", " ")
    return [line[2:].split("   #")[0] for line in joined.splitlines() if line.startswith("$ ")]


def option_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("option_tables", HERE / "scripts" / "option_tables.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def sh(command: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "ORT_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"$ {command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a newcomer has it: a model, images, a teacher and a student, a quantized model and a project file."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("model.onnx", "teacher.onnx"):
        shutil.copy(DIGITS / "digits.onnx", folder / name)
    (folder / "images").mkdir()
    for i, image in enumerate(sorted((DIGITS / "calib").rglob("*.png"))[::3]):
        shutil.copy(image, folder / "images" / f"{i:03}.png")
    shutil.copy(DIGITS / "preprocess.toml", folder / "preprocess.toml")
    sh("edgeopt quantize model.onnx --calib images/ && edgeopt init model.onnx --calib images/", folder)
    sh("edgeopt shrink teacher.onnx --width 0.5 -o small.onnx", folder)
    return folder


@pytest.fixture(scope="module")
def page_folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Path]]:
    """A copy of it for each page, in which its blocks are run in order."""
    made = _Copies(home, tmp_path_factory)
    yield made


class _Copies(dict[Path, Path]):
    def __init__(self, home: Path, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self.home, self.factory = home, factory

    def __missing__(self, page: Path) -> Path:
        self[page] = self.factory.mktemp(page.stem) / "here"
        shutil.copytree(self.home, self[page])
        return self[page]


@pytest.mark.parametrize("block", [b for b in blocks("console") if not b.why], ids=lambda b: b.name)
def test_a_console_block_does_what_it_says(block: Block, page_folder: dict[Path, Path]) -> None:
    assert commands(block), "a console block has commands behind `$ `"
    for command in commands(block):
        sh(command, page_folder[block.page])


def test_a_block_that_is_not_run_says_why_and_most_are_run() -> None:
    found = blocks("console")
    assert all(len(b.why.split()) >= 2 for b in found if b.why)
    assert sum(not b.why for b in found) > len(found) / 2


def test_the_python_of_the_docs_runs_in_order(page_folder: dict[Path, Path]) -> None:
    for page in DOCS:
        text = "\n".join(b.text for b in blocks("python") if b.page == page and not b.why)
        if text:
            script = page_folder[page] / "every_block.py"
            script.write_text(text, encoding="utf-8")
            sh(f"{sys.executable} -W error::DeprecationWarning every_block.py", page_folder[page])


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((HERE / "docs" / "examples").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    (tmp_path / "every_cell.py").write_text(code, encoding="utf-8")
    sh(f"{sys.executable} {tmp_path / 'every_cell.py'}", notebook.parent)


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda b: b.name)
def test_toml_in_the_docs_is_toml(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_is_short_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("# ") and len(lines) <= MOST_LINES
    assert [x for x in lines if len(x) > 120 and not x.startswith("|")] == []
    for target in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.S)):
        assert target.startswith(("https://", "#")) or (page.parent / target.split("#")[0]).exists(), target


def test_the_readme_is_read_in_two_minutes() -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    assert len(text.splitlines()) <= README_LINES and len(prose.split()) <= README_WORDS


def test_every_option_of_every_command_is_in_a_table_of_a_page() -> None:
    module = option_tables()
    named = {m[1] for page in DOCS for m in module.PLACE.finditer(page.read_text(encoding="utf-8"))}
    assert named == set(module.TABLES) - {"compare"}  # which has the options of profile
    for name, options in module.TABLES.items():
        assert issubclass(options, Options)
        rows = module.table(name).splitlines()[2:]
        assert rows and all(re.match(r"\| `--?[\w-]+` \| `\w+` \|", row) for row in rows)
    assert module.on_page_markdown("a\n<!-- options: quantize -->\nb").count("| `--mode` |") == 1
    with pytest.raises(ValueError, match="no options 'quantise'"):
        module.table("quantise")


def test_every_page_is_in_the_menu() -> None:
    menu = (HERE / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f" {page.name}" in menu for page in DOCS)
