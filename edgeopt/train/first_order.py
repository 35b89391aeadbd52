"""First-order importance of weights: w d(y . r)/dw for random r."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgeopt.data import Feed
from edgeopt.train.network.module import OnnxModule


def products(model: ir.Model, feeds: Sequence[Feed], seed: int = 0) -> Iterator[dict[str, NDArray[np.float64]]]:
    """w dL/dw by weight for each feed, with L = sum over the outputs of y . r / |y| and r normal."""
    module = OnnxModule(model)
    generator = torch.Generator().manual_seed(seed)
    for feed in feeds:
        module.zero_grad()
        outputs = [y for y in module({k: torch.from_numpy(v) for k, v in feed.items()}).values() if y.requires_grad]
        parts = [
            (y * torch.randn(y.shape, generator=generator)).sum() / y.detach().norm().clamp_min(1e-12) for y in outputs
        ]
        torch.stack(parts).sum().backward()
        yield {
            name: (w.detach() * w.grad).double().numpy()
            for name, w in zip(module.trained, module.weights, strict=True)
            if w.grad is not None
        }
