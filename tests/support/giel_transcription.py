"""Independent float64 implementation of GIEL, equation by equation, for the tests.

Follows the paper's sections 3.2 to 3.4 (equations 3 to 12, figure 3) on a flat dict of tensors
under vosengine's state-dict names; nothing of vosengine is imported. Letters: D objects, T support
frames, h x w the stride-16 grid, n = h * w its positions in reading order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


class Parts(NamedTuple):
    """Intermediate results from the frames to the logits."""

    support_keys: Tensor  # [T, Ck, h, w]
    support_values: Tensor  # [T, Cv, h, w]
    query_key: Tensor  # [Ck, h, w]
    query_value: Tensor  # [Cv, h, w]
    frame_weights: Tensor  # [T], all 1 without temporal attention
    affinity: Tensor  # [T * n, n]
    label_embedding: Tensor  # [D, T, Cv, h, w]
    instance_values: Tensor  # [D, T, Cv, h, w]
    global_readout: Tensor  # [Cv, h, w]
    instance_readouts: Tensor  # [D, Cv, h, w]
    global_map: Tensor  # F_g [4h, 4w], a logit
    coarse_maps: Tensor | None  # F_coarse [D, h, w], only of the fast variant
    instance_maps: Tensor  # F_d [D, 4h, 4w], logits


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Every convolution of the network pads by half of its size."""
    weight = w[f"{name}.weight"]
    return functional.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (w[f"{name}.{part}"][:, None, None] for part in parts)
    return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def residual(w: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    """A block of a ResNet: two convolutions, or three with the stride on the second."""
    strides = (1, stride, 1) if f"{name}.conv3.weight" in w else (stride, 1)
    y = x
    for i, step in enumerate(strides, start=1):
        y = norm(w, f"{name}.bn{i}", conv(w, f"{name}.conv{i}", y, step))
        if i < len(strides):
            y = torch.relu(y)
    if f"{name}.downsample.0.weight" in w:
        x = norm(w, f"{name}.downsample.1", conv(w, f"{name}.downsample.0", x, stride))
    return torch.relu(x + y)


def encode(w: Weights, net: str, frame: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """r2, r3, r4 [1, C, ., .] of a frame [1, 3, H, W], with a binary mask [H, W] as a fourth
    channel on the support side (section 3.3)."""
    x = conv(w, f"{net}.conv1", frame, 2)
    if mask is not None:
        x = x + conv(w, f"{net}.mask_conv", mask[None, None], 2)
    x = functional.max_pool2d(torch.relu(norm(w, f"{net}.bn1", x)), 3, 2, 1)
    levels = []
    for layer in (1, 2, 3):
        block = 0
        while f"{net}.layer{layer}.{block}.conv1.weight" in w:
            stride = 2 if layer > 1 and block == 0 else 1
            x = residual(w, f"{net}.layer{layer}.{block}", x, stride)
            block += 1
        levels.append(x)
    return levels


def keys_and_values(w: Weights, side: str, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 3: f_k and f_v, one pair of 1x1 convolutions for both sides unless each has its
    own. embedding [B, C, h, w] -> [B, Ck, h, w], [B, Cv, h, w]."""
    head = f"{side}_head" if f"{side}_head.key.weight" in w else "query_head"
    return conv(w, f"{head}.key", embedding), conv(w, f"{head}.value", embedding)


def frame_weights(w: Weights, keys: Tensor, query: Tensor) -> Tensor:
    """Figure 3: weights [T], summing to 1, of keys [T, Ck, h, w] beside the query's [Ck, h, w].

    The first key, the selected one and the query's are summarised by the same layers, concatenated
    and regressed.
    """

    def summarise(key: Tensor) -> Tensor:
        return torch.relu(conv(w, "attention.summarise", key[None]))[0].mean(dim=(1, 2))

    def linear(name: str, x: Tensor) -> Tensor:
        return w[f"attention.{name}.weight"] @ x + w[f"attention.{name}.bias"]

    scores = []
    for key in keys:
        x = torch.cat((summarise(keys[0]), summarise(key), summarise(query)))
        x = torch.relu(linear("mix2", torch.relu(linear("mix1", x))))
        scores.append(linear("weigh", x)[0])
    odds = torch.exp(torch.stack(scores) - max(scores))
    return odds / odds.sum()


def affinity(
    keys: Tensor, query: Tensor, weights: Tensor, temporal: str = "bias", scale: float = 1.0
) -> Tensor:
    """Equation 4: A = softmax(k^S k^Q^T) [T * n, n], over the support's positions. `temporal` says
    where frame weights enter: ln w_i added to the scores ("bias"), w_i times the keys of frame i
    ("premul"), or times its rows of A without renormalisation ("postmul")."""
    rows = []
    for key, weight in zip(keys, weights, strict=True):
        key = weight * key if temporal == "premul" else key
        scores = scale * (key.flatten(1).T @ query.flatten(1))  # n n
        rows.append(scores + torch.log(weight) if temporal == "bias" else scores)
    scores = torch.cat(rows)
    odds = torch.exp(scores - scores.max(dim=0).values)
    shares = odds / odds.sum(dim=0)
    if temporal == "postmul":
        pairs = zip(weights, shares.chunk(len(keys)), strict=True)
        shares = torch.cat([weight * part for weight, part in pairs])
    return shares


def read(values: Tensor, shares: Tensor) -> Tensor:
    """v^S^T A: values [T, Cv, h, w] summed by the columns of A -> [Cv, h, w]."""
    total = torch.zeros(values.shape[1:]).double().flatten(1)
    for value, part in zip(values, shares.chunk(len(values)), strict=True):
        total = total + value.flatten(1) @ part
    return total.view(values.shape[1:])


def global_embedding(query_value: Tensor, values: Tensor, shares: Tensor) -> Tensor:
    """Equation 5: [v^Q, v^S^T A] of 2 * Cv channels."""
    return torch.cat((query_value, read(values, shares)))


def res_block(w: Weights, name: str, x: Tensor) -> Tensor:
    return x + conv(w, f"{name}.conv2", torch.relu(conv(w, f"{name}.conv1", torch.relu(x))))


def enlarge(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def decode(w: Weights, name: str, embedding: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
    """STM's decoder with one output channel: a logit [4h, 4w] of an embedding [2 * Cv, h, w]."""
    m = res_block(w, f"{name}.block4", conv(w, f"{name}.conv", embedding[None]))
    for level, skip in ((3, r3), (2, r2)):
        side = res_block(w, f"{name}.skip{level}.block", conv(w, f"{name}.skip{level}.conv", skip))
        m = res_block(w, f"{name}.block{level}", side + enlarge(m, 2))
    return conv(w, f"{name}.predict", torch.relu(m))[0, 0]


def global_map(w: Weights, embedding: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
    """Equation 6: F_global, the logit of the union of all objects."""
    return decode(w, "global_decoder", embedding, r3, r2)


def label_tensor(labels: ArrayLike, slot: int) -> Tensor:
    """Three binary channels [3, H, W]: the instance, the union of the others, the background."""
    slots = torch.as_tensor(labels)
    own, others = slots == slot, (slots != slot) & (slots != 0)
    return torch.stack((own, others, slots == 0)).double()


def label_embedding(w: Weights, label: Tensor, activation: str = "linear") -> Tensor:
    """Equation 7: f_theta of a label tensor [3, H, W] -> [Cv, h, w], two convolutions of stride 4,
    each followed by a batch norm."""
    x = norm(w, "label_encoder.bn1", conv(w, "label_encoder.conv1", label[None], 4))
    x = norm(w, "label_encoder.bn2", conv(w, "label_encoder.conv2", torch.relu(x), 4))[0]
    return torch.sigmoid(x) if activation == "sigmoid" else x


def instance_values(values: Tensor, embedded: Tensor) -> Tensor:
    """Equation 8: v^S times the embedded labels of every object, [D, T, Cv, h, w]."""
    return torch.stack([values * labels for labels in embedded])


def instance_embedding(query_value: Tensor, values: Tensor, shares: Tensor) -> Tensor:
    """Equation 9: [v^Q, V_instance^T A] per object, [D, 2 * Cv, h, w], with the A of equation 4."""
    return torch.stack([global_embedding(query_value, own, shares) for own in values])


def coarse_map(w: Weights, embedding: Tensor) -> Tensor:
    """Equation 10: F_coarse [h, w] of one object's embedding, by two 1x1 convolutions."""
    return conv(w, "coarse.2", torch.relu(conv(w, "coarse.0", embedding[None])))[0, 0]


def refined_map(w: Weights, embedding: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
    """Equation 12: a decoder instead of equation 11's upsampling."""
    own = "instance_decoder.conv.weight" in w
    return decode(w, "instance_decoder" if own else "global_decoder", embedding, r3, r2)


def final_logits(instance_maps: Tensor, foreground: Tensor) -> Tensor:
    """Equation 11: the logit of p_d = sigmoid(F_d) * sigmoid(F_g).

    1 / p - 1 = e^-a + e^-b + e^(-a - b), with the maps a and b.
    """
    a, b = instance_maps, foreground.expand_as(instance_maps)
    return -torch.logaddexp(torch.logaddexp(-a, -b), -a - b)


def support_set(
    t: int, size: int = 5, literal: bool = False, prompted: tuple[int, ...] = ()
) -> list[int]:
    """Return the support frames of frame t (section 3.4): all frames before it while they are at
    most `size`; then the first, the last and the centres of segments between them, or with
    `literal` the first and the centres of segments of the rest. Prompted frames are always kept."""
    if t <= size:
        return list(range(t))
    chosen = {0, *(frame for frame in prompted if frame < t)}
    if not literal:
        chosen.add(t - 1)
    segments = size - 1 if literal else size - 2
    frames = t - 1 if literal else t - 2
    chosen.update(1 + (2 * j + 1) * frames // (2 * segments) for j in range(segments))
    return sorted(chosen)


def transcribe(
    weights: Weights,
    frames: list[Tensor],
    labels: list[ArrayLike],
    union_masks: list[ArrayLike],
    support: list[int],
    *,
    variant: str = "full",
    temporal: str = "bias",
    scale: float | None = None,
    product: bool = True,
    label_activation: str = "linear",
    objects: int | None = None,
) -> tuple[Tensor, Parts]:
    """Return the logits of p_d [D, H / 4, W / 4] of the last of the frames [1, 3, H, W]
    (normalised), before the aggregation, with the frames in `support`; and intermediate results.

    labels         per frame before the last, slots 0..D [H, W], 0 the background
    union_masks    per frame before the last, the binary mask [H, W] for the support encoder
    variant        "full" refines with a decoder (equation 12), "fast" does not (10 and 11)
    temporal       "bias", "premul", "postmul" or "none"
    scale          of the scores; None is 1 / sqrt(Ck), the paper prints 1
    product        False leaves F_g out of equation 11
    objects        D, by default the largest slot in the labels
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    count = max(int(torch.as_tensor(x).max()) for x in labels) if objects is None else objects
    stored = []
    for i in support:
        mask = torch.as_tensor(union_masks[i]).double()
        r4 = encode(w, "support_encoder", frames[i].double(), mask)[2]
        stored.append(keys_and_values(w, "support", r4))
    keys, values = (torch.cat(side) for side in zip(*stored, strict=True))
    r2, r3, r4 = encode(w, "query_encoder", frames[-1].double())
    query_key, query_value = (x[0] for x in keys_and_values(w, "query", r4))
    if temporal == "none":
        shares = torch.ones(len(support)).double()
    else:
        shares = frame_weights(w, keys, query_key)
    scale = query_key.shape[0] ** -0.5 if scale is None else scale
    a = affinity(keys, query_key, shares, temporal, scale)
    foreground = global_map(w, global_embedding(query_value, values, a), r3, r2)
    rows = [
        [label_embedding(w, label_tensor(labels[i], d), label_activation) for i in support]
        for d in range(1, count + 1)
    ]
    embedded = torch.stack([torch.stack(row) for row in rows])
    own_values = instance_values(values, embedded)
    embeddings = instance_embedding(query_value, own_values, a)
    coarse = None
    if variant == "fast":
        coarse = torch.stack([coarse_map(w, x) for x in embeddings])
        maps = enlarge(coarse[None], 4)[0]
    else:
        maps = torch.stack([refined_map(w, x, r3, r2) for x in embeddings])
    logits = final_logits(maps, foreground) if product else maps
    readouts = embeddings[:, len(query_value) :]
    return logits, Parts(keys, values, query_key, query_value, shares, a, embedded, own_values,
                         read(values, a), readouts, foreground, coarse, maps)  # fmt: skip
