"""The papers' losses, each over probabilities or logits of one clip or frame."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..types import Size

LEAST = 1e-6  # what a logarithm is taken of is at least this
WINDOW, WINDOW_SIGMA = 11, 1.5  # of SSIM, in pixels
C1, C2 = 0.01**2, 0.03**2


def soft_aggregation(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """Logits [O, h, w] of every object -> ln of `finish_masks`'s probabilities [1 + O, *size].

    ln odds are the logits themselves, and of the background -ln(product of (1 + e^logit) - 1):
    in logarithms throughout, so that gradients neither overflow nor vanish.
    """
    fine = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    total = functional.softplus(fine).sum(dim=0, keepdim=True).clamp(min=LEAST)
    background = -(total + torch.log(-torch.expm1(-total)))
    return torch.cat((background, fine)).log_softmax(dim=0)


def cross_entropy(logarithms: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-ln p of every pixel's own class: ln p [1 + O, H, W], labels [H, W] int -> [H, W]."""
    return -logarithms.gather(0, labels[None].long())[0]


def hardest(losses: torch.Tensor, share: float) -> torch.Tensor:
    """Mean of the greatest `share` (0..1] of the losses, at least one: bootstrapping."""
    flat = losses.flatten()
    count = max(1, round(share * len(flat)))
    return flat.mean() if count == len(flat) else flat.topk(count, sorted=False).values.mean()


def soft_iou(masks: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - sum min / sum max of every mask, averaged: both [O, H, W] in 0..1 (MUNet, section 3.4).

    An object that is neither seen nor there costs nothing; 0 where there are no objects.
    """
    if len(masks) == 0:
        return masks.new_zeros(())
    shared = torch.minimum(masks, targets).sum(dim=(1, 2))
    joined = torch.maximum(masks, targets).sum(dim=(1, 2))
    return (1 - (shared + 1) / (joined + 1)).mean()


def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every pixel, from logits; shapes as given."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def binary_of(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every pixel, from probabilities; shapes as given.

    Unlike torch's it runs under autocast.
    """
    p = probabilities.float()
    return -(targets * p.clamp(min=LEAST).log() + (1 - targets) * (1 - p).clamp(min=LEAST).log())


def structural(masks: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - SSIM, averaged over all masks and over all windows of 11 x 11 that lie in them.

    SSIM = (2 m n + c1) (2 cov + c2) / ((m^2 + n^2 + c1) (var_m + var_n + c2))

    masks, targets  [N, H, W] in 0..1, sides of 11 or more; m and n their means under a Gaussian
                    window with sigma 1.5, c1 = 0.01^2, c2 = 0.03^2 (Wang et al., 2004)
    """
    taps = torch.arange(WINDOW, device=masks.device, dtype=torch.float32) - WINDOW // 2
    weights = torch.softmax(-taps.square() / (2 * WINDOW_SIGMA**2), dim=0)
    x, y = masks.float(), targets.float()
    planes = torch.stack((x, y, x * x, y * y, x * y), dim=1)
    with torch.autocast(masks.device.type, enabled=False):
        rows = weights[None, None, :, None].expand(5, -1, -1, -1)
        planes = functional.conv2d(planes, rows, groups=5)
        planes = functional.conv2d(planes, rows.mT, groups=5)
    m, n, xx, yy, xy = planes.unbind(dim=1)
    luminance = (2 * m * n + C1) / (m * m + n * n + C1)
    contrast = (2 * (xy - m * n) + C2) / (xx - m * m + yy - n * n + C2)
    return 1 - (luminance * contrast).mean()


def contrastive(
    embeddings: torch.Tensor, identities: torch.Tensor, temperature: float
) -> torch.Tensor:
    """How surely an embedding finds those of its own object among all others.

    -ln softmax_j(<e_i, e_j> / temperature) over all j other than i, averaged over the j of i's own
    object, then over all i that have any: embeddings [N, C] of length 1, identities [N] int. 0 if
    no object is there twice. (InfoNCE with many positives; Khosla et al., 2020, equation 2)
    """
    own = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    alike = (identities[:, None] == identities) & ~own
    with torch.autocast(embeddings.device.type, enabled=False):
        likeness = embeddings.float() @ embeddings.float().T / temperature
    likeness = likeness.masked_fill(own, -torch.inf)
    surprise = -torch.log_softmax(likeness, dim=1).masked_fill(~alike, 0)
    counts = alike.sum(dim=1)
    each = surprise.sum(dim=1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)
