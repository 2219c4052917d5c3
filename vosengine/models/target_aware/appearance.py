"""T-Net's appearance models: per track two linear layers, and the samples that they are fitted to.

Target-aware U-VOS, section 3.2, with FRTM's settings (Robinson et al., CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ...config import TargetAwareConfig
from ...errors import InputError
from ...kernels import fit_target
from ...kernels.fit_target import reduce_labels
from ...policies.tracks import begin_samples, push_sample
from ...types import Size


def pixel_weights(labels: torch.Tensor, influence: float) -> torch.Tensor:
    """v^2 of every pixel, so that a small target counts: labels [.., H, W] in 0..1 -> [.., H, W].

    With q the mean of a label and k = max(influence, q), target pixels get k / q and background
    (1 - k) / (1 - q); a soft label lies between. A target of `influence` or more of the frame
    leaves every weight at 1, so does one that fills the frame; without any target every weight is
    1 - influence. In k / q, q counts as one pixel at least.
    """
    height, width = labels.shape[-2:]
    share = labels.mean(dim=(-2, -1), keepdim=True)
    target = (influence / share.clamp(min=1 / (height * width))).clamp(min=1)
    background = ((1 - influence) / (1 - share)).clamp(max=1)
    return torch.lerp(background, target, labels)


class GridLabels(NamedTuple):
    """Labels and their pixel weights on the grid of the scores, as `fit_target` takes them."""

    bands: torch.Tensor  # [.., 9, h, w]
    targets: torch.Tensor  # [.., h, w]


def to_grid(labels: torch.Tensor, influence: float, cells: Size) -> GridLabels:
    """Labels [.., H, W] in 0..1 or bool, weighted and reduced to `cells`; float32."""
    labels = labels.to(torch.float32)
    # The root: `influence` is then the target's share of the squared error. [C: FRTM's code]
    weights = pixel_weights(labels, influence).sqrt()
    bands, targets, _ = reduce_labels(labels, weights, cells)
    return GridLabels(bands, targets)


class Samples:
    """What the models of all tracks are fitted to, allocated once.

    features  [K, S, D, h, w]   the frame through the track's first layer
    bands     [K, S, 9, h, w]   the label and its pixel weights on the grid
    targets   [K, S, h, w]
    weight    [K, S]            on the CPU; not normalised; 0 where there is no sample
    filled    per track, how many samples it has: the first ones

    All float32: S (D + 10) h w 4 bytes and S times 4 per track, 30.5 MB at 80 samples of 96 x 30 x
    30. Zeros at first, since a sample of weight 0 must be finite.
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
        """The first n samples of a new track, features [n, D, h, w]: equal shares of gamma. [O]"""
        count = len(features)
        self.features[slot, :count] = features
        self.bands[slot, :count] = labels.bands
        self.targets[slot, :count] = labels.targets
        begin_samples(self.config, self.weight[slot].numpy(), count)
        self.filled[slot] = count

    def push(
        self, slot: int, features: torch.Tensor, labels: GridLabels, *, verified: bool
    ) -> None:
        """One more sample, features [D, h, w], in the next free place or in that of the
        lightest."""
        weight = self.weight[slot].numpy()
        place = push_sample(self.config, weight, self.filled[slot], verified=verified)
        self.features[slot, place] = features
        self.bands[slot, place] = labels.bands
        self.targets[slot, place] = labels.targets
        self.filled[slot] = min(self.filled[slot] + 1, self.config.samples)

    def weights(self, slots: Sequence[int]) -> torch.Tensor:
        """[n, S]: alpha of these tracks, of sum 1."""
        weight = self.weight[list(slots)]
        return weight / weight.sum(dim=1, keepdim=True)

    def read(self, slots: Sequence[int], count: int) -> tuple[torch.Tensor, ...]:
        """`fit_target`'s features, bands, targets and weights: these tracks' first samples, as
        views where the slots follow one another."""
        device = self.features.device
        rows, weight = _rows(slots, device), self.weights(slots)[:, :count]
        banks = (self.features, self.bands, self.targets)
        return (*(bank[rows, :count] for bank in banks), weight.to(device, non_blocking=True))

    def forget(self, slot: int, last: int) -> None:
        """Drop a track; the last one's samples move into its place."""
        used = self.filled[last]
        if slot != last:
            for bank in (self.features, self.bands, self.targets):
                bank[slot, :used].copy_(bank[last, :used])
            self.weight[slot] = self.weight[last]
            self.filled[slot] = used
        self.weight[last] = 0
        self.filled[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """All that the first `count` tracks need to go on: only places that hold something."""
        used = max(self.filled[:count], default=0)
        banks = ("features", "bands", "targets", "weight")
        saved = {name: getattr(self, name)[:count, :used] for name in banks}
        return {**saved, "filled": torch.tensor(self.filled[:count], dtype=torch.int64)}

    def restore(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        """Take over what `tensors` gave."""
        used = tensors["weight"].shape[1]
        self.weight.zero_()
        for name in ("features", "bands", "targets", "weight"):
            getattr(self, name)[:count, :used] = tensors[name]
        self.filled = tensors["filled"].tolist() + [0] * (len(self.filled) - count)


class Tracks:
    """The appearance models of one stream: scores = W2 * (W1 * X) per track (equation 8).

    config      its samples, iterations and the rest
    max_tracks  slots; tracks fill 0, 1, 2...
    channels    C of the backbone's features X
    cells       (h, w) of their grid
    like        a tensor on the device to use; everything here is stored in float32 whatever its
                dtype, and fitted in float64 from that

    projection  [K, D, C]     W1, fitted on a track's first frame and frozen from then on
    kernel      [K, D, 3, 3]  W2
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
        """Bytes of everything here; they do not grow."""
        banks = (*vars(self.samples).values(), self.projection, self.kernel)
        return sum(bank.nbytes for bank in banks if isinstance(bank, torch.Tensor))

    @property
    def count(self) -> int:
        """How many tracks there are."""
        return sum(filled > 0 for filled in self.samples.filled)

    def begin(self, slot: int, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Start a track: both layers are fitted to its first frame and that frame's augmentations.

        slot      the next free one, or one whose track is to be replaced
        features  [n, C, h, w]  X of the frame and of its augmentations
        labels    [n, H, W]     bool or 0..1, of any size

        Raises  InputError where the slot is beyond the next free one, or n is 0 or more than
                config.samples; ShapeError from `fit_target`
        """
        limit = min(self.count + 1, len(self.kernel))
        if not 0 <= slot < limit:
            raise InputError(f"slot: wanted 0..{limit - 1}, given {slot}; free a slot first")
        count = len(features)
        if not 1 <= count <= self.config.samples:
            raise InputError(f"features: wanted 1..{self.config.samples} samples, given {count}")
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
        """W1 * X of every track: X [1, C, h, w] -> [K, D, h, w], for `scores` and `push`."""
        projection = self.projection[: self.count]
        return torch.einsum("kdc,chw->kdhw", projection, features[0].to(torch.float32))

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        """W2 * maps of every track: `project`'s [K, D, h, w] -> coarse scores [K, 1, h, w]."""
        if len(maps) == 0:
            return maps.new_zeros(0, 1, *self.cells)
        # A product per tap, then the nine shifted and summed: torch is slow at grouped convolutions
        # of one output channel a group.
        taps = self.kernel[: len(maps)].flatten(2).flip(2).mT @ maps.flatten(2)  # [K, 9, h * w]
        return functional.fold(taps, self.cells, 3, padding=1)

    def push(self, slot: int, maps: torch.Tensor, label: torch.Tensor, *, verified: bool) -> None:
        """One more sample of a track: its `project` of the frame [D, h, w] and its label [H, W].

        verified  the label is a proposal that the track was matched with: it counts for more

        The model itself changes at the next `update`. Raises  InputError without such a track.
        """
        self._check(slot)
        grid = to_grid(label, self.config.target_influence, self.cells)
        self.samples.push(slot, maps, grid, verified=verified)

    def update(self, slots: Sequence[int]) -> None:
        """Refit the second layer of these tracks to their samples, all at once.

        Raises  InputError without such a track.
        """
        self._check(*slots)
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

    def _check(self, *slots: int) -> None:
        for slot in slots:
            if not 0 <= slot < self.count:
                wanted = f"one of the {self.count} tracks"
                raise InputError(f"slot: wanted {wanted}, given {slot}; begin it first")

    def forget(self, slot: int, last: int) -> None:
        """Drop a track; the last one moves into its place."""
        self.samples.forget(slot, last)
        for bank in (self.projection, self.kernel):
            if slot != last:
                bank[slot] = bank[last]
            bank[last] = 0

    def tensors(self, count: int) -> dict[str, torch.Tensor]:
        """All that the first `count` tracks need to go on elsewhere."""
        layers = {"projection": self.projection[:count], "kernel": self.kernel[:count]}
        return {**layers, **self.samples.tensors(count)}

    def restore(self, tensors: dict[str, torch.Tensor], count: int) -> None:
        """Take over what `tensors` gave."""
        self.samples.restore(tensors, count)
        for name in ("projection", "kernel"):
            getattr(self, name).zero_()[:count] = tensors[name]


def first_weights(
    channels: int, features: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """W1 [D, C] and W2 [D, 3, 3] that every track starts from: the same numbers on every device.

    W1 is small, so that the first scores are near 0 and the first step, which sees them linear,
    goes far in the right direction. [O] FRTM starts from the usual initialisation, six times as
    large.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    projection = torch.randn(channels, features, generator=generator, device="cpu")
    projection *= 0.1 * features**-0.5
    kernel = torch.randn(channels, 3, 3, generator=generator, device="cpu")
    kernel *= (9 * channels) ** -0.5
    return projection.to(device), kernel.to(device)


def _rows(slots: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    """The slots as an index: a slice, so that views will do, where they follow one another."""
    first, last = slots[0], slots[-1]
    if list(slots) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(slots, device=device)
