"""The protocol of workers as types: what is asked, and what is answered. An answer that is none is refused by name
before anything reads it. `edgeopt schema protocol` prints it as a JSON Schema; docs/protocol.md says it in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgeopt.errors import WorkerError
from edgeopt.runtime.worker.keeper import PROTOCOL

_MOST = 2**62  # nanoseconds


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class Hello(_Answer):
    """Who answers. Everything but the version is for the eyes, except the number of the process."""

    protocol: int = Field(description=f"version of the protocol; this one is {PROTOCOL}")
    pid: int | None = Field(default=None, description="process, by which it can be ended")
    python: str | None = None
    onnxruntime: str | None = None
    providers: tuple[str, ...] | None = Field(default=None, strict=False, description="execution providers")


class Open(_Request):
    """Create the session of a model. Times, feeds and outputs are of the model that was opened last."""

    model: str = Field(description="name of the file over there")
    providers: tuple[tuple[str, Mapping[str, str]], ...] = Field(default=(), description="name and options of each")
    provider: str = Field(default="", description="of a browser: wasm or webgpu")
    plugin: str | None = Field(default=None, description="a plugin provider, whose first device is used")
    threads: int = 1
    level: str = "all"
    config: Mapping[str, str] = Field(default={}, description="session options")
    arena: bool = True
    profile: str | None = Field(default=None, description="prefix of the trace's file; none is written without")
    assignment: bool = Field(default=False, description="whether to tell which provider computes which node")
    fixed: Mapping[str, int] = Field(default={}, description="sizes of named dimensions")
    external: Mapping[str, str] = Field(default={}, description="of a browser: external data by name, and their files")


class Opened(_Answer):
    """create_ns: how long it took."""

    create_ns: int = Field(ge=0, le=_MOST)
    outputs: tuple[str, ...] = Field(strict=False)
    providers: tuple[str, ...] | None = Field(default=None, strict=False)


class FeedFile(_Request):
    """Read the feeds from a file with entries `index/input`, .npz or .safetensors; they are used in turn."""

    path: str


class Fed(_Answer):
    """feeds: how many."""

    feeds: int = Field(ge=1)


class Block(_Request):
    """Run at least `runs` inferences for at least `seconds`, back to back or at `rate` a second."""

    runs: int = 1
    seconds: float = 0.0
    rate: float = 0.0


class Times(_Answer):
    """Nanoseconds of each inference; start, end: of the block; wait_ns, switches: what the system took from it."""

    times: tuple[Annotated[int, Field(ge=0, le=_MOST)], ...] = Field(min_length=1, strict=False)
    start: int = Field(ge=0, le=_MOST)
    end: int = Field(ge=0, le=_MOST)
    wait_ns: int | None = Field(default=None, ge=0)
    switches: int = Field(default=0, ge=0)


class OutputFile(_Request):
    """Write the outputs for every feed to a file with entries `index/output`, in the format of the feeds."""

    path: str


class Written(_Answer):
    """outputs: their names in the order of the model."""

    outputs: tuple[str, ...] = Field(strict=False)


class Nothing(_Request):
    """No arguments."""


class MemoryAsked(_Request):
    """reset: start the peak anew, where the kernel can."""

    reset: bool = False


class MemoryTold(_Answer):
    """Bytes of the process."""

    peak_rss: int = Field(ge=0)


class Traced(_Answer):
    """path: the trace's file."""

    path: str


class Machine(_Answer):
    """What a keeper's machine tells of itself: texts of its system by name, and what has no text."""

    texts: Mapping[str, str]
    cores: int = Field(ge=1)
    load: tuple[float, ...] = Field(strict=False)
    system: str
    processor: str
    container: bool


class State(_Answer):
    """Of a keeper's machine at this moment; null where its system does not tell."""

    celsius: float | None
    mhz: float | None
    throttled: bool | None


class Have(_Answer):
    """Whether a file is there whole."""

    have: bool


class Data(_Answer):
    """A part of a file, in base64."""

    data: str


class Part(_Request):
    """Of a keeper: a part of a file. sha256: of the whole; at: offset; size: bytes; data: base64."""

    path: str
    sha256: str = ""
    at: int = 0
    size: int = 0
    data: str = ""


class Process(_Request):
    """Of a keeper: a worker that it takes into care (`watch`), or ends."""

    pid: int


class Same(_Answer):
    """Whether the first feed gave the same outputs twice."""

    deterministic: bool


_SPOKEN: Mapping[str, tuple[type[_Request], type[_Answer]]] = {
    "hello": (Nothing, Hello),
    "open": (Open, Opened),
    "feed": (FeedFile, Fed),
    "block": (Block, Times),
    "repeats": (Nothing, Same),
    "outputs": (OutputFile, Written),
    "memory": (MemoryAsked, MemoryTold),
    "trace": (Nothing, Traced),
    "machine": (Nothing, Machine),
    "state": (Nothing, State),
    "have": (Part, Have),
    "put": (Part, _Answer),
    "get": (Part, Data),
    "drop": (Part, _Answer),
    "watch": (Process, _Answer),
    "end": (Process, _Answer),
}


def checked(do: str, answer: Any) -> dict[str, Any]:
    """`answer` as it came, if it is one to the request `do`.

    Raises:
        WorkerError: it is none; says where.
    """
    if not isinstance(answer, dict):
        raise WorkerError(f"the answer to {do!r} is no object")
    if do in _SPOKEN:
        try:
            _SPOKEN[do][1].model_validate(answer)
        except ValidationError as e:
            first = e.errors()[0]
            raise WorkerError(
                f"the answer to {do!r} is none: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from e
    return answer


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of requests and answers: `requests/NAME` and `answers/NAME`."""
    found: dict[str, Any] = {"requests": {}, "answers": {}}
    for do, (request, answer) in _SPOKEN.items():
        found["requests"][do] = TypeAdapter(request).json_schema()
        found["answers"][do] = TypeAdapter(answer).json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"edgeopt.protocol/{PROTOCOL}",
        "description": "A request is a line of JSON, the request's properties and `do`: its name. The answer is a line,"
        ' {"ok": answer} or {"error": words, "type": name}.',
        "$defs": found,
    }
