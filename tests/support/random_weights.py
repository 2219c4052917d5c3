"""Small random state dicts for tests of the independent implementations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RandomWeights:
    """Float32 weights by name: He scaling, and norms near the identity."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.named: dict[str, Tensor] = {}

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def conv(self, name: str, c_in: int, c_out: int, size: int, bias: bool = True) -> None:
        gain = math.sqrt(2.0 / (c_in * size * size))
        self.named[f"{name}.weight"] = gain * self.draw(c_out, c_in, size, size)
        if bias:
            self.named[f"{name}.bias"] = 0.1 * self.draw(c_out)

    def linear(self, name: str, c_in: int, c_out: int) -> None:
        self.named[f"{name}.weight"] = math.sqrt(2.0 / c_in) * self.draw(c_out, c_in)
        self.named[f"{name}.bias"] = 0.1 * self.draw(c_out)

    def norm(self, name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            drawn = 0.1 * self.draw(channels)
            centred = part in ("bias", "running_mean")
            self.named[f"{name}.{part}"] = drawn if centred else 1 + drawn

    def resnet(self, net: str, width: int, bottleneck: bool) -> tuple[int, int, int]:
        """Two blocks per layer, under torchvision's names; channels of layer1 to layer3."""
        self.conv(f"{net}.conv1", 3, width, 7, bias=False)
        self.norm(f"{net}.bn1", width)
        c_in, channels = width, []
        for layer, inner in ((1, width), (2, 2 * width), (3, 4 * width)):
            c_out = 4 * inner if bottleneck else inner
            for index in (0, 1):
                block = f"{net}.layer{layer}.{index}"
                sizes = [(c_in, inner, 3), (inner, inner, 3)]
                if bottleneck:
                    sizes = [(c_in, inner, 1), (inner, inner, 3), (inner, c_out, 1)]
                for i, size in enumerate(sizes, start=1):
                    self.conv(f"{block}.conv{i}", *size, bias=False)
                    self.norm(f"{block}.bn{i}", size[1])
                if c_in != c_out:
                    self.conv(f"{block}.downsample.0", c_in, c_out, 1, bias=False)
                    self.norm(f"{block}.downsample.1", c_out)
                c_in = c_out
            channels.append(c_out)
        return channels[0], channels[1], channels[2]
