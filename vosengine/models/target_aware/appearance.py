"""T-Net's appearance models: two linear layers per track and their training samples.

Target-aware U-VOS, section 3.2, with FRTM's settings (Robinson et al., CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ...config import TargetAwareConfig
from ...kernels import fit_target
from ...kernels.fit_target import reduce_labels
from ...policies.tracks import begin_samples, push_sample
from ...types import Size


def pixel_weights(labels: torch.Tensor, influence: float) -> torch.Tensor:
    """Pixel weights v^2 that balance small targets: labels [.., H, W] in 0..1 -> [.., H, W].

    With q the mean of a label and k = max(influence, q), target pixels have weight k / q and
    background pixels (1 - k) / (1 - q); soft labels interpolate. If q >= influence all weights are
    1; without a target they are 1 - influence. In k / q, q is at least one pixel's share.
    """
    height, width = labels.shape[-2:]
    share = labels.mean(dim=(-2, -1), keepdim=True)
    target = (influence / share.clamp(min=1 / (height * width))).clamp(min=1)
    background = ((1 - influence) / (1 - share)).clamp(max=1)
    return torch.lerp(background, target, labels)


class GridLabels(NamedTuple):
    """Labels and pixel weights reduced to the scores' grid, in the form `fit_target` takes."""

    bands: torch.Tensor  # [.., 9, h, w]
    targets: torch.Tensor  # [.., h, w]


def to_grid(labels: torch.Tensor, influence: float, cells: Size) -> GridLabels:
    """Weight labels [.., H, W] (bool, or 0..1) and reduce them to `cells` (h, w); float32."""
    labels = labels.to(torch.float32)
    # With the root, `influence` is the target's share of the squared error (FRTM's released code).
    weights = pixel_weights(labels, influence).sqrt()
    bands, targets, _ = reduce_labels(labels, weights, cells)
    return GridLabels(bands, targets)


class Samples:
    """Training samples of all tracks, allocated once.

    features  [K, S, D, h, w]   output of the track's first layer
    bands     [K, S, 9, h, w]   label and pixel weights on the grid (see GridLabels)
    targets   [K, S, h, w]
    weight    [K, S]            on the CPU; not normalised; 0 for an empty place
    filled    per track, its number of samples; they occupy the first places

    All float32: 4 S (D + 10) h w + 4 S bytes per track, 30.5 MB for 80 samples of 96 x 30 x 30.
    Initialised to 0, because a sample of weight 0 must be finite.
    """

    def __init__(
        self,
        config: TargetAwareConfig,
        tracks: int,
        cells: Size,
        device: torch.device,
    ) -> None:
        self.config = config
        rows = tracks, config.samples
        self.features = torch.zeros(*rows, config.target_channels, *cells, device=device)
        self.bands = torch.zeros(*rows, 9, *cells, device=device)
        self.targets = torch.zeros(*rows, *cells, device=device)
        self.weight = torch.zeros(*rows, device="cpu")
        self.filled = [0] * tracks

    def begin(self, slot: int, features: torch.Tensor, labels: GridLabels) -> None:
        """Set the first n samples of a new track, features [n, D, h, w]. (ours) They share gamma
        equally."""
        count = len(features)
        self.features[slot, :count] = features
        self.bands[slot, :count] = labels.bands
        self.targets[slot, :count] = labels.targets
        begin_samples(self.config, self.weight[slot].numpy(), count)
        self.filled[slot] = count

    def push(
        self, slot: int, features: torch.Tensor, labels: GridLabels, *, verified: bool
    ) -> None:
        """Add a sample, features [D, h, w], to the next free place; if full, replace the sample of
        lowest weight."""
        weight = self.weight[slot].numpy()
        place = push_sample(self.config, weight, self.filled[slot], verified=verified)
        self.features[slot, place] = features
        self.bands[slot, place] = labels.bands
        self.targets[slot, place] = labels.targets
        self.filled[slot] = min(self.filled[slot] + 1, self.config.samples)

    def weights(self, slots: Sequence[int]) -> torch.Tensor:
        """Normalised sample weights alpha [n, S] of the tracks in `slots`; each row sums to 1."""
        weight = self.weight[list(slots)]
        return weight / weight.sum(dim=1, keepdim=True)

    def read(self, slots: Sequence[int], count: int) -> tuple[torch.Tensor, ...]:
        """Features, bands, targets and weights of the first `count` samples of the tracks in
        `slots`, as `fit_target` takes them; the first three are views if slots are consecutive."""
        device = self.features.device
        rows, weight = _rows(slots, device), self.weights(slots)[:, :count]
        banks = (self.features, self.bands, self.targets)
        return (*(bank[rows, :count] for bank in banks), weight.to(device, non_blocking=True))

    def forget(self, slot: int, last: int) -> None:
        """Drop the track in `slot`; the samples of track `last` move there."""
        used = self.filled[last]
        if slot != last:
            for bank in (self.features, self.bands, self.targets):
                bank[slot, :used].copy_(bank[last, :used])
            self.weight[slot] = self.weight[last]
            self.filled[slot] = used
        self.weight[last] = 0
        self.filled[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """Snapshot of the first `count` tracks, without places that all of them leave empty."""
        used = max(self.filled[:count], default=0)
        banks = ("features", "bands", "targets", "weight")
        saved = {name: getattr(self, name)[:count, :used] for name in banks}
        return {**saved, "filled": torch.tensor(self.filled[:count], dtype=torch.int64)}

    def restore(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        """Load a snapshot of `count` tracks."""
        used = tensors["weight"].shape[1]
        self.weight.zero_()
        for name in ("features", "bands", "targets", "weight"):
            getattr(self, name)[:count, :used] = tensors[name]
        self.filled = tensors["filled"].tolist() + [0] * (len(self.filled) - count)


class Tracks:
    """Appearance models of one stream: scores = W2 * (W1 * X) per track (equation 8).

    config      number of samples, iterations, ridge and so on
    max_tracks  number of slots; tracks occupy slots 0, 1, 2...
    channels    channels C of the backbone's features X
    cells       (h, w) of their grid
    like        tensor on the device to use; storage is float32 whatever its dtype, and the fit
                runs in float64

    projection  [K, D, C]     attribute: W1, fitted on a track's first frame, then frozen
    kernel      [K, D, 3, 3]  attribute: W2
    """

    def __init__(
        self,
        config: TargetAwareConfig,
        max_tracks: int,
        channels: int,
        cells: Size,
        like: torch.Tensor,
    ) -> None:
        self.config = config
        self.cells = cells
        self.samples = Samples(config, max_tracks, cells, like.device)
        self.first = first_weights(config.target_channels, channels, like.device)
        projection, kernel = self.first
        self.projection = projection.new_zeros(max_tracks, *projection.shape)
        self.kernel = kernel.new_zeros(max_tracks, *kernel.shape)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, constant over time."""
        banks = (*vars(self.samples).values(), self.projection, self.kernel)
        return sum(bank.nbytes for bank in banks if isinstance(bank, torch.Tensor))

    @property
    def count(self) -> int:
        """Number of tracks."""
        return sum(filled > 0 for filled in self.samples.filled)

    def begin(self, slot: int, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Start a track: fit both layers to its first frame and augmentations of it.

        slot      the next free slot, or that of a track to replace
        features  [n, C, h, w]  X of the frame and its augmentations, at most config.samples
        labels    [n, H, W]     bool or 0..1, any H and W
        """
        count = len(features)
        grid = to_grid(labels, self.config.target_influence, self.cells)
        maps = features.to(torch.float32)
        share = maps.new_full((1, count), 1 / count)
        projection, kernel = self.first
        kernel, projection = fit_target(
            maps[None],
            grid.bands[None],
            grid.targets[None],
            share,
            kernel[None],
            projection[None],
            iterations=self.config.first_iterations,
            ridge=self.config.ridge,
        )
        self.samples.begin(slot, torch.einsum("dc,nchw->ndhw", projection[0], maps), grid)
        self.projection[slot] = projection[0]
        self.kernel[slot] = kernel[0]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """W1 * X of each track, input of `scores` and `push`: X [1, C, h, w] -> [K, D, h, w]."""
        projection = self.projection[: self.count]
        return torch.einsum("kdc,chw->kdhw", projection, features[0].to(torch.float32))

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        """Coarse scores W2 * maps [K, 1, h, w] of each track, from `project`'s [K, D, h, w]."""
        if len(maps) == 0:
            return maps.new_zeros(0, 1, *self.cells)
        # One product per tap, then the nine maps shifted and summed: torch is slow at grouped
        # convolutions with one output channel per group.
        taps = self.kernel[: len(maps)].flatten(2).flip(2).mT @ maps.flatten(2)  # [K, 9, h * w]
        return functional.fold(taps, self.cells, 3, padding=1)

    def push(self, slot: int, maps: torch.Tensor, label: torch.Tensor, *, verified: bool) -> None:
        """Add a sample to a track: maps [D, h, w] from `project`, and its label [H, W].

        verified  the label was verified by a proposal; the sample has a larger weight

        The model changes at the next `update`.
        """
        grid = to_grid(label, self.config.target_influence, self.cells)
        self.samples.push(slot, maps, grid, verified=verified)

    def update(self, slots: Sequence[int]) -> None:
        """Refit the second layer of the tracks in `slots` to their samples, as one batch."""
        if not slots:
            return
        rows = _rows(slots, self.kernel.device)
        count = max(self.samples.filled[slot] for slot in slots)
        samples = self.samples.read(slots, count)
        self.kernel[rows], _ = fit_target(
            *samples,
            self.kernel[rows],
            iterations=self.config.later_iterations,
            ridge=self.config.ridge,
        )

    def forget(self, slot: int, last: int) -> None:
        """Drop the track in `slot`; track `last` moves there."""
        self.samples.forget(slot, last)
        for bank in (self.projection, self.kernel):
            if slot != last:
                bank[slot] = bank[last]
            bank[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """Snapshot of the first `count` tracks."""
        layers = {"projection": self.projection[:count], "kernel": self.kernel[:count]}
        return {**layers, **self.samples.tensors(count)}

    def restore(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        """Load a snapshot of `count` tracks."""
        self.samples.restore(tensors, count)
        for name in ("projection", "kernel"):
            getattr(self, name).zero_()[:count] = tensors[name]


def first_weights(
    channels: int, features: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Initial W1 [D, C] and W2 [D, 3, 3] of every track; the same values on every device.

    (ours) W1 is a sixth of the usual initialisation, which FRTM uses: first scores are then near 0,
    where the linearised problem of the first step is accurate.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    projection = torch.randn(channels, features, generator=generator, device="cpu")
    projection *= 0.1 * features**-0.5
    kernel = torch.randn(channels, 3, 3, generator=generator, device="cpu")
    kernel *= (9 * channels) ** -0.5
    return projection.to(device), kernel.to(device)


def _rows(slots: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    """Index for `slots`: a slice (gives views) if they are consecutive, else a tensor."""
    first, last = slots[0], slots[-1]
    if list(slots) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(slots, device=device)
