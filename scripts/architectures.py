"""Ten architectures in plain torch with random weights: what `bench_train` exports to ONNX.

The blocks follow the papers and their usual code; the transformers, the recurrent net and the detector are smaller
than theirs. `build` makes a net whose norms are no identities: BatchNorm statistics are those of random inputs, then
moved, so that folding them into convolutions changes the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = dict[str, Tensor]
Axes = dict[str, dict[int, str]]


def conv(
    inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, activation."""
    layers = [nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outer)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inner, outer, 3, stride), conv(outer, outer, 3, act=None))
        same = stride == 1 and inner == outer
        self.skip: nn.Module = nn.Identity() if same else conv(inner, outer, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet18() -> nn.Module:
    """ResNet-18."""
    stages, width = [], 64
    for i, outer in enumerate((64, 128, 256, 512)):
        stages += [Residual(width, outer, 1 if i == 0 else 2), Residual(outer, outer, 1)]
        width = outer
    stem = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int, inner: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(width, inner, 1), act(), nn.Conv2d(inner, width, 1), gate())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.pool(x))


class Inverted(nn.Module):
    """The inverted residual of the mobile nets; `squeeze`: a Squeeze, if there is one."""

    def __init__(
        self,
        inner: int,
        middle: int,
        outer: int,
        kernel: int,
        stride: int,
        act: type[nn.Module],
        squeeze: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.add = stride == 1 and inner == outer
        layers: list[nn.Module] = [] if middle == inner else [conv(inner, middle, 1, act=act)]
        layers.append(conv(middle, middle, kernel, stride, middle, act))
        layers += [] if squeeze is None else [squeeze]
        self.body = nn.Sequential(*layers, conv(middle, outer, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


def mobilenetv2() -> nn.Module:
    """MobileNetV2 1.0."""
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
    width = 32
    for expand, outer, count, stride in table:
        for i in range(count):
            layers.append(Inverted(width, width * expand, outer, 3, stride if i == 0 else 1, nn.ReLU6))
            width = outer
    head = [conv(320, 1280, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)


def mobilenetv3() -> nn.Module:
    """MobileNetV3 small."""
    table = (
        (3, 16, 16, True, "r", 2),
        (3, 72, 24, False, "r", 2),
        (3, 88, 24, False, "r", 1),
        (5, 96, 40, True, "h", 2),
        (5, 240, 40, True, "h", 1),
        (5, 240, 40, True, "h", 1),
        (5, 120, 48, True, "h", 1),
        (5, 144, 48, True, "h", 1),
        (5, 288, 96, True, "h", 2),
        (5, 576, 96, True, "h", 1),
        (5, 576, 96, True, "h", 1),
    )
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.Hardswish)]
    width = 16
    for kernel, middle, outer, squeezed, act, stride in table:
        squeeze = Squeeze(middle, max(8, (middle // 4 + 4) // 8 * 8), nn.ReLU, nn.Hardsigmoid) if squeezed else None
        layers.append(Inverted(width, middle, outer, kernel, stride, nn.ReLU if act == "r" else nn.Hardswish, squeeze))
        width = outer
    head = [nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000)]
    return nn.Sequential(*layers, conv(96, 576, 1, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0."""
    table = (
        (1, 16, 1, 3, 1),
        (6, 24, 2, 3, 2),
        (6, 40, 2, 5, 2),
        (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1),
        (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.SiLU)]
    width = 32
    for expand, outer, count, kernel, stride in table:
        for i in range(count):
            squeeze = Squeeze(width * expand, width // 4, nn.SiLU, nn.Sigmoid)
            layers.append(Inverted(width, width * expand, outer, kernel, stride if i == 0 else 1, nn.SiLU, squeeze))
            width = outer
    return nn.Sequential(
        *layers, conv(320, 1280, 1, act=nn.SiLU), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    )


class Attention(nn.Module):
    """Self-attention by torch's fused kernel; `mask` is added to the scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, s, d = x.shape
        q, k, v = self.qkv(x).reshape(n, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(n, s, d))


def mlp(width: int, inner: int) -> nn.Sequential:
    """Two linear layers around GELU."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class PreNorm(nn.Module):
    """A block of ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, 1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """ViT-Ti/16."""

    def __init__(self, size: int = 96, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(PreNorm(width, 3) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, then an MLP over channels, scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.mlp = nn.LayerNorm(width, 1e-6), mlp(width, 4 * width)
        self.gamma = nn.Parameter(torch.rand(width) * 0.5 + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


def convnext_atto() -> nn.Module:
    """ConvNeXt-Atto."""
    layers: list[nn.Module] = [nn.Conv2d(3, 40, 4, 4), LayerNorm2d(40, 1e-6)]
    for i, (width, count) in enumerate(((40, 2), (80, 2), (160, 6), (320, 2))):
        if i:
            layers += [LayerNorm2d(width // 2, 1e-6), nn.Conv2d(width // 2, width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(count)]
    head = [nn.AdaptiveAvgPool2d(1), LayerNorm2d(320, 1e-6), nn.Flatten(), nn.Linear(320, 1000)]
    return nn.Sequential(*layers, *head)


class WindowAttention(nn.Module):
    """Attention inside windows of an image [N, side, side, width], shifted or not, with relative positions."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.window, self.shift = heads, side, window, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None]) + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1], persistent=False)
        region = torch.zeros(1, side, side, 1)
        cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                region[:, rows, columns] = 3 * i + j
        kind = self.split(region).squeeze(-1)
        mask = torch.zeros(kind.shape[0], window**2, window**2)
        self.register_buffer("mask", mask.masked_fill(kind[:, None] != kind[:, :, None], -100.0), persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """[N * windows, window * window, width]."""
        w, count = self.window, self.side // self.window
        return x.reshape(-1, count, w, count, w, x.shape[-1]).transpose(2, 3).reshape(-1, w * w, x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        w, count, width = self.window, self.side // self.window, x.shape[-1]
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        rows = self.split(x)
        q, k, v = self.qkv(rows).reshape(-1, w * w, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.flatten()].reshape(w * w, w * w, -1).permute(2, 0, 1)
        scores = q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias
        if self.shift:
            scores = scores.reshape(-1, count**2, self.heads, w * w, w * w) + self.mask[:, None]
            scores = scores.reshape(-1, self.heads, w * w, w * w)
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, width))
        y = y.reshape(-1, count, count, w, w, width).transpose(2, 3).reshape(-1, self.side, self.side, width)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a norm."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), WindowAttention(width, heads, side, window, shift)
        self.norm2, self.mlp = nn.LayerNorm(width), mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Four neighbours become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.linear(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Swin, narrow, in three stages."""

    def __init__(self, size: int = 64, width: int = 64, window: int = 4) -> None:
        super().__init__()
        self.patches, self.norm0 = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        blocks: list[nn.Module] = []
        side = size // 4
        for i, count in enumerate((2, 4, 2)):
            blocks += [Merge(width)] if i else []
            side, width = (side // 2, 2 * width) if i else (side, width)
            shift = window // 2 if side > window else 0
            blocks += [SwinBlock(width, width // 32, side, window, shift * (j % 2) or 0) for j in range(count)]
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm0(self.patches(x).permute(0, 2, 3, 1)))
        return self.head(self.norm(x).mean((1, 2)))


class BertLayer(nn.Module):
    """Post-norm encoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width, 1e-12)
        self.mlp, self.norm2 = mlp(width, 4 * width), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Module):
    """A BERT of four layers: hidden states and the pooled first token."""

    def __init__(self, words: int = 8192, width: int = 256, longest: int = 512) -> None:
        super().__init__()
        self.words, self.positions, self.types = (nn.Embedding(n, width) for n in (words, longest, 2))
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(BertLayer(width, 4) for _ in range(4))
        self.pool = nn.Linear(width, width)
        self.register_buffer("order", torch.arange(longest)[None], persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        at = self.positions(self.order[:, : input_ids.shape[1]])
        x = self.norm(self.words(input_ids) + at + self.types(token_type_ids))
        mask = (1.0 - attention_mask[:, None, None].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pool(x[:, 0]))


class CRNN(nn.Module):
    """Convolutions, two bidirectional LSTMs over columns, and letters: [columns, N, 37]."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()

        def stage(a: int, b: int, pool: tuple[int, int]) -> list[nn.Module]:
            return [conv(a, b, 3), nn.MaxPool2d(pool, pool)]

        layers = [
            *stage(1, 32, (2, 2)),
            *stage(32, 64, (2, 2)),
            conv(64, 128, 3),
            *stage(128, 128, (2, 1)),
            conv(128, 256, 3),
            *stage(256, 256, (2, 1)),
        ]
        self.body = nn.Sequential(*layers, nn.Conv2d(256, 256, (2, 1)), nn.BatchNorm2d(256), nn.ReLU())
        self.rnn1 = nn.LSTM(256, hidden, bidirectional=True)
        self.middle = nn.Linear(2 * hidden, hidden)
        self.rnn2 = nn.LSTM(hidden, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 37)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.body(x).squeeze(2).permute(2, 0, 1)
        return self.head(self.rnn2(self.middle(self.rnn1(columns)[0]))[0])


class C2f(nn.Module):
    """YOLOv8's stage: half of it goes through bottlenecks, and all is concatenated."""

    def __init__(self, inner: int, outer: int, count: int, add: bool) -> None:
        super().__init__()
        half = outer // 2
        self.first, self.last, self.add = (
            conv(inner, outer, 1, act=nn.SiLU),
            conv((2 + count) * half, outer, 1, act=nn.SiLU),
            add,
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(half, half, 3, act=nn.SiLU), conv(half, half, 3, act=nn.SiLU)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.add else block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Three max pools in a row, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = conv(width, width // 2, 1, act=nn.SiLU), conv(2 * width, width, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """YOLOv8-n: boxes in pixels [N, 4, anchors] and class scores [N, classes, anchors]."""

    def __init__(self, classes: int = 20, bins: int = 16, size: int = 128) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        c = nn.SiLU
        self.down1 = nn.Sequential(conv(3, 16, 3, 2, act=c), conv(16, 32, 3, 2, act=c), C2f(32, 32, 1, True))
        self.down3 = nn.Sequential(conv(32, 64, 3, 2, act=c), C2f(64, 64, 2, True))
        self.down4 = nn.Sequential(conv(64, 128, 3, 2, act=c), C2f(128, 128, 2, True))
        self.down5 = nn.Sequential(conv(128, 256, 3, 2, act=c), C2f(256, 256, 1, True), SPPF(256))
        self.up, self.up4, self.up3 = nn.Upsample(scale_factor=2), C2f(384, 128, 1, False), C2f(192, 64, 1, False)
        self.back4, self.out4 = conv(64, 64, 3, 2, act=c), C2f(192, 128, 1, False)
        self.back5, self.out5 = conv(128, 128, 3, 2, act=c), C2f(384, 256, 1, False)
        self.boxes, self.kinds = (
            nn.ModuleList(
                nn.Sequential(conv(w, inner, 3, act=c), conv(inner, inner, 3, act=c), nn.Conv2d(inner, outer, 1))
                for w in (64, 128, 256)
            )
            for inner, outer in ((64, 4 * bins), (64, classes))
        )
        self.register_buffer("steps", torch.arange(bins, dtype=torch.float32).reshape(1, bins, 1, 1))
        sides = [size // s for s in (8, 16, 32)]
        grids = [torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy")).flatten(1) for n in sides]
        self.register_buffer("anchors", torch.cat(grids, 1) + 0.5)
        strides = [torch.full((n * n,), float(s)) for n, s in zip(sides, (8, 16, 32), strict=True)]
        self.register_buffer("strides", torch.cat(strides))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p3 = self.down3(self.down1(x))
        p4 = self.down4(p3)
        p5 = self.down5(p4)
        u4 = self.up4(torch.cat([self.up(p5), p4], 1))
        o3 = self.up3(torch.cat([self.up(u4), p3], 1))
        o4 = self.out4(torch.cat([self.back4(o3), u4], 1))
        o5 = self.out5(torch.cat([self.back5(o4), p5], 1))
        heads = zip((o3, o4, o5), self.boxes, self.kinds, strict=True)
        y = torch.cat([torch.cat([box(o), kind(o)], 1).flatten(2) for o, box, kind in heads], 2)
        spread, scores = y.split((4 * self.bins, self.classes), 1)
        spread = spread.reshape(spread.shape[0], 4, self.bins, -1).transpose(1, 2).softmax(1)
        near, far = F.conv2d(spread, self.steps).squeeze(1).chunk(2, 1)
        first, last = self.anchors - near, self.anchors + far
        boxes = torch.cat([(first + last) / 2, last - first], 1) * self.strides
        return boxes, scores.sigmoid()


def image(*shape: int) -> Callable[[int], Inputs]:
    """Random images of `shape` by the batch."""
    return lambda n: {"image": torch.randn(n, *shape)}


def tokens(n: int, length: int = 48) -> Inputs:
    """Random tokens, the last rows shorter."""
    ends = torch.linspace(length, length // 2, n).long()
    mask = (torch.arange(length) < ends[:, None]).long()
    types = (torch.arange(length) >= ends[:, None] // 2).long()
    return {"input_ids": torch.randint(8192, (n, length)), "attention_mask": mask, "token_type_ids": types}


@dataclass(frozen=True)
class Architecture:
    """make: the net; inputs: random inputs of a batch; axes: those that are dynamic in the export."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    axes: Axes = field(default_factory=lambda: {"image": {0: "batch"}})
    batch: int = 8  # of the speed and memory part


_ROWS = {0: "batch", 1: "length"}
ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(resnet18, image(3, 96, 96)),
    "mobilenetv2": Architecture(mobilenetv2, image(3, 96, 96)),
    "mobilenetv3": Architecture(mobilenetv3, image(3, 128, 128)),
    "efficientnet_b0": Architecture(efficientnet_b0, image(3, 96, 96)),
    "vit_tiny": Architecture(ViT, image(3, 96, 96)),
    "convnext_atto": Architecture(convnext_atto, image(3, 96, 96)),
    "swin": Architecture(Swin, image(3, 64, 64)),
    "bert": Architecture(Bert, tokens, dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), _ROWS)),
    "crnn": Architecture(CRNN, image(1, 32, 128)),
    "yolo": Architecture(Yolo, image(3, 128, 128)),
}


@torch.no_grad()
def build(name: str, seed: int) -> nn.Module:
    """The net in eval mode with the weights of `seed`."""
    torch.manual_seed(seed)
    architecture = ARCHITECTURES[name]
    net = architecture.make()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    batch_norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in batch_norms:
        norm.momentum = 1.0  # keep what the next batch shows
    net.train()(*architecture.inputs(4).values())
    for norm in batch_norms:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        mean += 0.2 * var.sqrt() * torch.randn_like(mean)
        var.mul_(torch.empty_like(var).uniform_(0.5, 1.5)).add_(1e-2)
    return net.eval()
