"""Augmentation of a first frame: cut out the object, fill the hole, paste the object elsewhere."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...policies.placement import BLUR_CHANCE, DRAWS, blur_width, placement
from ..blocks import resize

HOLE_MARGIN = 0.01  # dilation of the filled hole, as a fraction of the frame's longer side
LEAST_KEPT = 0.1  # minimum fraction of the object's pixels inside the frame; else not placed


def augment(
    frame: torch.Tensor, label: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make `count` frames in which the object is moved, rotated and scaled at random.

    frame      [1, 3, H, W]      prepared (normalised), any floating dtype
    label      [H, W] bool       the object
    generator  on the CPU; the same state gives the same frames
    returns    [count, 3, H, W]  frames, dtype and device of `frame`
               [count, H, W]     bool, the object in them

    Mirrored with probability 1/3, rotated by up to 60 degrees, scaled by 0.7 to 1.5, shifted by up
    to 1/5 of the frame's sides, blurred with probability 2/5. If less than a tenth of the object
    stays in the frame, the original frame is returned instead. Does not synchronise.

    Source  FRTM (Robinson et al., CVPR 2020, section 3.4), which moves the object to the middle of
            the frame and fills the hole by Telea's method
    """
    draws = torch.rand(count, DRAWS, generator=generator, device="cpu").tolist()
    placements = torch.tensor([placement(draw[:5]) for draw in draws]).reshape(count, 2, 3)
    moved, labels, background = move(frame, label, placements.to(frame.device))
    for index, (*_, chance, amount) in enumerate(draws):
        if chance < BLUR_CHANCE:
            moved[index] = _blur(moved[index], amount)
    return put_back(moved, labels, background, frame, label)


def move(
    frame: torch.Tensor, label: torch.Tensor, placements: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Warp the object of `augment` by placements [count, 2, 3].

    Returns  colour (times alpha) and alpha [count, 4, H, W] float32, the object [count, H, W] bool,
             and the filled background [1, 3, H, W] float32
    """
    mask = label[None, None].to(torch.float32)
    picture = frame.to(torch.float32)
    background = fill(picture, 1 - _dilate(mask, round(HOLE_MARGIN * max(label.shape))))
    cut = torch.cat((picture * mask, mask), dim=1).expand(len(placements), -1, -1, -1)
    grid = _sampling_grid(placements, label)
    moved = functional.grid_sample(cut, grid, mode="bilinear", align_corners=False)
    return moved, moved[:, 3] > 0.5, background


def put_back(
    moved: torch.Tensor,
    labels: torch.Tensor,
    background: torch.Tensor,
    frame: torch.Tensor,
    label: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Composite `move`'s object over the background; the original frame and label if less than
    LEAST_KEPT of the object is left."""
    frames = moved[:, :3] + (1 - moved[:, 3:]) * background
    pixels = labels.sum(dim=(1, 2))
    kept = ((pixels > 0) & (pixels >= LEAST_KEPT * label.sum()))[:, None, None]
    frames = torch.where(kept[:, None], frames, frame.to(torch.float32))
    return frames.to(frame.dtype), (kept & labels) | (~kept & label)


def fill(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Inpaint unknown pixels by pull-push: known pixels are averaged into images of half the size,
    down to one pixel; on the way back unknown pixels are interpolated from the smaller image. 0 if
    no pixel is known.

    image [B, C, H, W], known [B, 1, H, W] 1 or 0 -> [B, C, H, W]
    """
    if image.shape[2:] == (1, 1):
        return image * known
    share = functional.avg_pool2d(known, 2, ceil_mode=True)
    mean = functional.avg_pool2d(image * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    smaller = fill(mean, (share > 0).to(image.dtype))
    return torch.where(known > 0, image, resize(smaller, image.shape[2:]))


def _dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    return functional.max_pool2d(mask, 2 * radius + 1, 1, radius)


def _sampling_grid(placements: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Grid [count, H, W, 2] for grid_sample: source position x of each pixel x' of the new frame.

    x = B (x' - c - t) + c, with B and t of the placement [2, 3] and c the object's centre
    """
    height, width = label.shape
    sides = placements.new_tensor([width, height])
    weight = label.to(placements.dtype)
    x = torch.arange(width, device=label.device) + 0.5
    y = torch.arange(height, device=label.device) + 0.5
    pixels = weight.sum().clamp(min=1)
    centre = torch.stack(((weight.sum(dim=0) * x).sum(), (weight.sum(dim=1) * y).sum())) / pixels
    new = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)  # [H, W, 2]
    shifted = new - (centre + placements[:, None, None, :, 2] * sides)
    old = torch.einsum("nij,nyxj->nyxi", placements[:, :, :2], shifted) + centre
    return 2 * old / sides - 1


def _blur(planes: torch.Tensor, amount: float) -> torch.Tensor:
    """Gaussian blur of planes [C, H, W]; `amount` in 0..1 sets its width (`blur_width`)."""
    sigma, radius = blur_width(amount, max(planes.shape[1:]))
    offsets = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    weights = torch.softmax(-0.5 * (offsets / sigma).square(), dim=0)
    x = functional.conv2d(planes[:, None], weights[None, None, :, None], padding=(radius, 0))
    return functional.conv2d(x, weights[None, None, None, :], padding=(0, radius))[:, 0]
