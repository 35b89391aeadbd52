"""The devices that a project file names: `[devices.NAME]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgeopt.errors import UsageError
from edgeopt.options.declare import Flag
from edgeopt.options.texts import Text


class DeviceTable(BaseModel):
    """A device by a name. at: its address; what else it is measured with, if the command does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    at: str = Field(min_length=1, description="local, ssh://user@board, exec:COMMAND.")
    python: str | None = Field(default=None, description="Its Python with onnxruntime.")
    target: str | None = Field(default=None, description="The target that it is. [default: by its processor]")
    provider: str | None = Field(default=None, description="Its execution provider.")
    threads: int | None = Field(default=None, ge=1, le=1024, description="Threads of an operator.")
    push: str = Field(default="", description="Copies {local} to {remote} there; else through standard input.")
    pull: str = Field(default="", description="Copies {remote} there to {local}.")


Device = Annotated[str | None, Flag(text=Text("NAME|ADDRESS", str), step=False)]
OF_DEVICE = "Where it is timed: ssh://user@board, exec:COMMAND, browser, or a name in edgeopt.toml. [default: here]"
TAKEN = re.compile(r"local|browser(-\d+)?")
_TABLES = TypeAdapter(Mapping[str, DeviceTable])


def tables(given: object, file: str) -> Mapping[str, DeviceTable]:
    """The table `[devices]` of a project file.

    Raises:
        UsageError: it holds what is no device.
    """
    for name in given if isinstance(given, dict) else ():
        if TAKEN.fullmatch(str(name)):
            raise UsageError(f"{file}: devices.{name}: is a name of edgeopt's own; choose another")
    try:
        return _TABLES.validate_python(given)
    except ValidationError as e:
        first = e.errors()[0]
        raise UsageError(f"{file}: devices.{'.'.join(map(str, first['loc']))}: {first['msg']}") from e
