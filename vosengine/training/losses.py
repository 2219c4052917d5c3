"""Loss functions of the papers, on probabilities or logits."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..types import Size

LEAST = 1e-6  # lower clamp of arguments of a logarithm
WINDOW, WINDOW_SIGMA = 11, 1.5  # Gaussian window of SSIM, in pixels
C1, C2 = 0.01**2, 0.03**2  # stabilising constants of SSIM


def soft_aggregation(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """Soft aggregation of object logits [O, h, w] -> log probabilities [1 + O, *size].

    The same as `finish_masks`, in log space so that gradients neither overflow nor vanish. Log odds
    are the logits, and -ln(product of (1 + e^logit) - 1) for the background.
    """
    fine = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    total = functional.softplus(fine).sum(dim=0, keepdim=True).clamp(min=LEAST)
    background = -(total + torch.log(-torch.expm1(-total)))
    return torch.cat((background, fine)).log_softmax(dim=0)


def cross_entropy(logarithms: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per pixel: log probabilities [1 + O, H, W], labels [H, W] int -> [H, W]."""
    return -logarithms.gather(0, labels[None].long())[0]


def hardest(losses: torch.Tensor, share: float) -> torch.Tensor:
    """Bootstrapped loss: mean over the largest `share` in (0, 1] of the losses, at least one."""
    flat = losses.flatten()
    count = max(1, round(share * len(flat)))
    return flat.mean() if count == len(flat) else flat.topk(count, sorted=False).values.mean()


def soft_iou(masks: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Soft IoU loss, 1 - sum min / sum max, averaged over masks (MUNet, section 3.4).

    masks, targets  [O, H, W] in 0..1

    Both sums are incremented by 1, so an empty mask with an empty target has loss 0. 0 for O = 0.
    """
    if len(masks) == 0:
        return masks.new_zeros(())
    intersection = torch.minimum(masks, targets).sum(dim=(1, 2))
    union = torch.maximum(masks, targets).sum(dim=(1, 2))
    return (1 - (intersection + 1) / (union + 1)).mean()


def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy per element, from logits; same shape as the inputs."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def binary_of(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy per element, from probabilities; same shape as the inputs, float32.

    Unlike torch's it is allowed under autocast.
    """
    p = probabilities.float()
    return -(targets * p.clamp(min=LEAST).log() + (1 - targets) * (1 - p).clamp(min=LEAST).log())


def structural(masks: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """SSIM loss: 1 - SSIM, averaged over masks and all 11 x 11 windows inside them.

    SSIM = (2 m n + c1) (2 cov + c2) / ((m^2 + n^2 + c1) (var_m + var_n + c2))

    with m and n the means under a Gaussian window of sigma 1.5, c1 = 0.01^2, c2 = 0.03^2 (Wang et
    al., 2004)

    masks, targets  [N, H, W] in 0..1, sides of 11 or more
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
    """Supervised contrastive loss: InfoNCE with several positives (Khosla et al., 2020, equation
    2).

    -ln softmax_j(<e_i, e_j> / temperature) over all j other than i, averaged over the positives j
    of i (same identity), then over all i with positives; 0 if there are none.

    embeddings  [N, C], of length 1
    identities  [N] int
    """
    diagonal = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    positive = (identities[:, None] == identities) & ~diagonal
    with torch.autocast(embeddings.device.type, enabled=False):
        similarity = embeddings.float() @ embeddings.float().T / temperature
    similarity = similarity.masked_fill(diagonal, -torch.inf)
    losses = -torch.log_softmax(similarity, dim=1).masked_fill(~positive, 0)
    counts = positive.sum(dim=1)
    means = losses.sum(dim=1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)
