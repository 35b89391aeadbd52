"""Find samples of little use: constant ones and duplicates.

Only a digest of each sample is kept, so that all samples can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeopt.data.spec import Feed

_NAMED = 3


@dataclass(frozen=True)
class Look:
    """Summary of a sample: a digest of its inputs, and whether each of its float inputs is constant."""

    digest: bytes
    constant: bool


def look(feed: Feed) -> Look:
    """The summary of one sample."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        digest.update(f"{name}{feed[name].dtype}{feed[name].shape}".encode())
        digest.update(np.ascontiguousarray(feed[name]).data)
    floats = [x for x in feed.values() if np.issubdtype(x.dtype, np.floating) and x.size > 1]
    return Look(digest.digest(), bool(floats) and all(float(x.min()) == float(x.max()) for x in floats))


def oddities(looks: Mapping[str, Look], among: Collection[str]) -> Iterator[str]:
    """One line on constant samples and one on duplicates, for the samples `among`; originals may be any in `looks`."""
    first: dict[bytes, str] = {}
    constant, repeated = [], []
    for name, seen in looks.items():
        twin = first.setdefault(seen.digest, name)
        if name not in among:
            continue
        if seen.constant:
            constant.append(name)
        if twin != name:
            repeated.append(f"{name} (as {twin})")
    for found, what in ((constant, "constant"), (repeated, "the same as another")):
        if found:
            shown = ", ".join(found[:_NAMED]) + (" ..." if len(found) > _NAMED else "")
            yield f"{len(found)} sample{'s are' if len(found) > 1 else ' is'} {what}: {shown}"
