"""An option is declared once, and every face names it in its own way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

import edgeopt
from edgeopt.errors import UsageError
from edgeopt.options import Flag, Options, takes
from edgeopt.options.declare import ChoiceTable, Face, called
from edgeopt.options.distill import Distill
from edgeopt.options.models import Export, Inspect, PreviewOptions, Shrink, Simplify
from edgeopt.options.profile import ProfileOne
from edgeopt.options.quantize import Quantize, SensitivityOptions
from edgeopt.ptq.reconstruct import ROUNDERS

MODELS = (Distill, Export, Inspect, PreviewOptions, ProfileOne, Quantize, SensitivityOptions, Shrink, Simplify)
KEYS = ("one", "two")


class Cake(Options):
    """Options to try with."""

    eggs: int = Field(default=3, ge=1, description="How many.")
    layers_m: Annotated[float | None, Flag("--layers", key="layers")] = Field(
        default=None, gt=0, description="How high."
    )
    fruit: Literal["apple", "plum"] = Field(default="apple", description="Which.")
    oven: Annotated[str, ChoiceTable(f"{__name__}:KEYS")] = Field(default="one", description="Which.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.layers_m is not None and self.eggs < 2:
            raise ValueError("{layers_m} needs more than one of {eggs}")
        return self


@takes(Cake)
def bake(bowl: str, options: Cake) -> str:
    """A cake."""
    return f"{bowl} {options.eggs} {options.fruit}"


FACES: tuple[tuple[Face, str], ...] = (("python", "layers_m"), ("command line", "--layers"), ("project file", "layers"))


@pytest.mark.parametrize(("face", "name"), FACES)
def test_each_face_has_its_own_name_for_an_option(face: Face, name: str) -> None:
    assert called(Cake, "layers_m", face) == name
    with pytest.raises(UsageError, match=rf"^{name} -1: above 0$"):
        Cake.of({"layers_m": -1.0}, face)
    with pytest.raises(UsageError, match=rf"^{name} needs more than one of (--)?eggs$"):
        Cake.of({"layers_m": 1.0, "eggs": 1}, face)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"egs": 1}, "no option 'egs'; did you mean 'eggs'?"),
        ({"eggs": "many"}, "eggs many: input should be a valid integer"),
        ({"eggs": 0}, "eggs 0: at least 1"),
        ({"fruit": "aple"}, "fruit aple: unknown; did you mean 'apple'? Known: apple, plum"),
        ({"oven": "tow"}, "oven 'tow': unknown; did you mean 'two'? Known: one, two"),
    ],
)
def test_a_wrong_argument_is_an_error_of_ours_in_a_call_and_in_a_model(choices: dict[str, Any], message: str) -> None:
    for made in (lambda: Cake(**choices), lambda: bake("bowl", **choices)):
        with pytest.raises(UsageError) as e:
            made()
        assert str(e.value).startswith(message)


def test_options_are_taken_as_keyword_arguments_or_as_one_value() -> None:
    assert bake("a") == "a 3 apple"
    assert bake("a", eggs=2, fruit="plum") == bake("a", Cake(eggs=2, fruit="plum")) == "a 2 plum"
    assert bake.__doc__ == "A cake."
    with pytest.raises(UsageError, match="takes one Cake"):
        bake("a", "b")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="lacks its argument 'bowl'"):
        bake()  # type: ignore[call-overload]


def test_what_was_chosen_is_what_differs_from_the_defaults() -> None:
    assert Cake().changed() == {}
    assert Cake(eggs=3, fruit="plum").changed() == {"fruit": "plum"}


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_option_says_what_it_is_and_no_two_share_a_name(model: type[Options]) -> None:
    assert all(f.description and f.description.endswith((".", "]")) for f in model.model_fields.values())
    for face in ("command line", "project file"):
        names = [called(model, n, face) for n in model.model_fields]
        assert len(set(names)) == len(names)


def test_a_row_in_a_table_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="rounding 'mine': unknown"):
        Quantize(rounding="mine")
    monkeypatch.setitem(ROUNDERS, "mine", ROUNDERS["nearest"])  # type: ignore[arg-type]
    assert Quantize(rounding="mine").rounding == "mine"


def test_a_users_file_is_checked_by_mypy(tmp_path: Path) -> None:
    good = (
        'import edgeopt\nr = edgeopt.quantize("m.onnx", "images/", mode="static",'
        ' exclude=("a",))\nprint(r.report.mode)\n'
    )
    good += (
        'edgeopt.compare("a.onnx", "b.onnx", threads=(1, 2))\nedgeopt.quantize("m.onnx", [],'
        " edgeopt.Quantize(samples=3))\n"
    )
    good += "def own(state: edgeopt.State) -> edgeopt.State:\n    return state\n"
    good += (
        'edgeopt.quantize("m.onnx", [], steps=(own,), recipe=edgeopt.Recipe((edgeopt.steps.Place(),))).save("q.onnx")\n'
    )
    bad = 'edgeopt.quantize("m.onnx", "images/", mode="statik")\nedgeopt.distill("m.onnx", "images/", epoch=3)\n'
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text("import edgeopt\n" + bad)
    root = Path(edgeopt.__file__).parent.parent  # with whose settings, and so the cache of a check before, it is quick
    command = [sys.executable, "-m", "mypy", *(str(tmp_path / f) for f in ("good.py", "bad.py"))]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert told.returncode == 1, told.stderr
    places = {Path(line.split(" error:")[0]).name for line in told.stdout.splitlines() if " error:" in line}
    assert places == {"bad.py:2:", "bad.py:3:"}


def test_py_typed_is_in_the_package() -> None:
    assert (Path(edgeopt.__file__).parent / "py.typed").is_file()
