"""Independent float64 implementation of STM (Oh et al., ICCV 2019) for the tests.

Follows the network's official release, formula by formula, on a flat dict of tensors under the
official state-dict names (without the `module.` prefix). Nothing of vosengine is imported.
Letters: O objects, T memory frames, h x w the stride-16 grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

State = dict[str, Tensor]

KEY, VALUE, DECODER = 128, 512, 256
STAGES = (("res2", 64, 3), ("res3", 128, 4), ("res4", 256, 6))  # name, width, bottlenecks
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Every key of the official state dict, without `module.`, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, c_in: int, c_out: int, size: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (c_out, c_in, size, size)
        if bias:
            shapes[f"{name}.bias"] = (c_out,)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def res_block(name: str) -> None:  # the decoder's: 256 -> 256, hence never a downsample
        conv(f"{name}.conv1", DECODER, DECODER, 3, bias=True)
        conv(f"{name}.conv2", DECODER, DECODER, 3, bias=True)

    for encoder in ("Encoder_M", "Encoder_Q"):
        shapes[f"{encoder}.mean"] = shapes[f"{encoder}.std"] = (1, 3, 1, 1)
        if encoder == "Encoder_M":
            conv("Encoder_M.conv1_m", 1, 64, 7, bias=False)
            conv("Encoder_M.conv1_o", 1, 64, 7, bias=False)
        conv(f"{encoder}.conv1", 3, 64, 7, bias=False)
        norm(f"{encoder}.bn1", 64)
        c_in = 64
        for stage, width, blocks in STAGES:
            for index in range(blocks):
                block = f"{encoder}.{stage}.{index}"
                sizes = ((c_in, width, 1), (width, width, 3), (width, 4 * width, 1))
                for i, (before, after, size) in enumerate(sizes, start=1):
                    conv(f"{block}.conv{i}", before, after, size, bias=False)
                    norm(f"{block}.bn{i}", after)
                if index == 0:
                    conv(f"{block}.downsample.0", c_in, 4 * width, 1, bias=False)
                    norm(f"{block}.downsample.1", 4 * width)
                c_in = 4 * width
    for head in ("KV_M_r4", "KV_Q_r4"):
        conv(f"{head}.Key", 1024, KEY, 3, bias=True)
        conv(f"{head}.Value", 1024, VALUE, 3, bias=True)
    conv("Decoder.convFM", 2 * VALUE, DECODER, 3, bias=True)
    res_block("Decoder.ResMM")
    for refine, channels in (("RF3", 512), ("RF2", 256)):
        conv(f"Decoder.{refine}.convFS", channels, DECODER, 3, bias=True)
        res_block(f"Decoder.{refine}.ResFS")
        res_block(f"Decoder.{refine}.ResMM")
    conv("Decoder.pred2", DECODER, 2, 3, bias=True)
    return shapes


# Gains relative to He scaling: with 1 masks have no effect, the attention is one-hot, or the frame
# dominates.
GAINS = {"conv1_m": 2.0, "conv1_o": 2.0, "Key": 0.3, "convFS": 0.25}


def random_state_dict(seed: int) -> State:
    """Return seeded float32 values for every official key, scaled so that no layer saturates."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in official_shapes().items():
        module, _, part = name.rpartition(".")
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1, dtype=torch.int64)
        elif part in ("mean", "std"):
            values = IMAGENET_MEAN if part == "mean" else IMAGENET_STD
            state[name] = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
        elif len(shape) == 4:  # a convolution: He, std = sqrt(2 / fan_in)
            gain = GAINS.get(module.split(".")[-1], 1.0) * math.sqrt(2.0 / math.prod(shape[1:]))
            if module.startswith("Decoder.") and module.endswith("conv2"):
                gain *= 0.3  # the last conv of a residual branch
            weight = gain * torch.randn(shape, generator=generator)
            if module == "Decoder.pred2":  # nearly a high pass: no constant offset dominates
                weight -= 0.85 * weight.mean(dim=(2, 3), keepdim=True)
            state[name] = weight
        elif part == "running_var":
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        elif part == "weight":  # of a batch norm
            damp = 0.3 if module.endswith("bn3") else 1.0
            state[name] = damp * (0.8 + 0.4 * torch.rand(shape, generator=generator))
        else:  # running_mean and every bias
            state[name] = 0.1 * torch.randn(shape, generator=generator)
    return state


def _conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A convolution with "same" padding (every one in STM has padding = size // 2)."""
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def _norm(s: State, name: str, x: Tensor) -> Tensor:
    """Batch norm in eval mode: gamma (x - mean) / sqrt(var + 1e-5) + beta."""
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (s[f"{name}.{part}"][:, None, None] for part in parts)
    return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def _bottleneck(s: State, name: str, x: Tensor, stride: int) -> Tensor:
    """relu(x' + bn conv1x1 relu bn conv3x3 relu bn conv1x1 x); the stride sits on the 3x3."""
    y = F.relu(_norm(s, f"{name}.bn1", _conv(s, f"{name}.conv1", x)))
    y = F.relu(_norm(s, f"{name}.bn2", _conv(s, f"{name}.conv2", y, stride)))
    y = _norm(s, f"{name}.bn3", _conv(s, f"{name}.conv3", y))
    if f"{name}.downsample.0.weight" in s:
        x = _norm(s, f"{name}.downsample.1", _conv(s, f"{name}.downsample.0", x, stride))
    return F.relu(x + y)


def _trunk(s: State, encoder: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the sum of the first convs (stride 2) to r2 256@/4, r3 512@/8, r4 1024@/16."""
    x = F.relu(_norm(s, f"{encoder}.bn1", x))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    r = []
    for stage, _, blocks in STAGES:
        for index in range(blocks):
            stride = 2 if index == 0 and stage != "res2" else 1
            x = _bottleneck(s, f"{encoder}.{stage}.{index}", x, stride)
        r.append(x)
    return r[0], r[1], r[2]


def _res_block(s: State, name: str, x: Tensor) -> Tensor:
    """x + conv2(relu(conv1(relu x)))."""
    y = _conv(s, f"{name}.conv1", F.relu(x))
    return x + _conv(s, f"{name}.conv2", F.relu(y))


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) up to multiples of 16; an odd one goes right or to the bottom."""
    down, across = -height % 16, -width % 16
    return across // 2, across - across // 2, down // 2, down - down // 2


def _memorize(s: State, frame: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Key [O,128,h,w] and value [O,512,h,w] of frame [3,H,W] in 0..1 with soft masks [O,H,W]."""
    pad = _padding(*frame.shape[-2:])
    frame, masks = F.pad(frame, pad), F.pad(masks, pad)  # black, and no object
    # The other objects' channel: the sum of all masks but the object's own, clamped to 0..1.
    rest = [torch.cat([masks[:i], masks[i + 1 :]]) for i in range(len(masks))]
    others = torch.stack([masks_of_rest.sum(0).clamp(0, 1) for masks_of_rest in rest])
    image = (frame[None] - s["Encoder_M.mean"]) / s["Encoder_M.std"]
    x = _conv(s, "Encoder_M.conv1", image, 2)
    x = x + _conv(s, "Encoder_M.conv1_m", masks[:, None], 2)
    x = x + _conv(s, "Encoder_M.conv1_o", others[:, None], 2)
    _, _, r4 = _trunk(s, "Encoder_M", x)
    return _conv(s, "KV_M_r4.Key", r4), _conv(s, "KV_M_r4.Value", r4)


def _read(keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
    """R = V softmax(K^T q / sqrt 128), over memory; [O,128,T,h,w], [O,512,T,h,w], [128,h,w]."""
    k, v, q = keys.flatten(2), values.flatten(2), query.flatten(1)
    attention = torch.softmax(k.transpose(1, 2) @ q / math.sqrt(KEY), dim=1)  # O Thw hw
    return (v @ attention).view(len(v), VALUE, *query.shape[-2:])


def _decode(s: State, m4: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
    """Two logits per object and padded pixel [O,2,H,W]: m4 = [R ; v], and the frame's r3, r2."""
    m = _res_block(s, "Decoder.ResMM", _conv(s, "Decoder.convFM", m4))
    for refine, skip in (("RF3", r3), ("RF2", r2)):
        side = _res_block(s, f"Decoder.{refine}.ResFS", _conv(s, f"Decoder.{refine}.convFS", skip))
        m = _res_block(s, f"Decoder.{refine}.ResMM", side + _enlarge(m, 2))
    return _enlarge(_conv(s, "Decoder.pred2", F.relu(m)), 4)


def _segment(s: State, frame: Tensor, keys: Tensor, values: Tensor, unused_rows: int) -> Tensor:
    """Probabilities [1+O,H,W] of frame [3,H,W] in 0..1, background first."""
    left, _, top, _ = pad = _padding(*frame.shape[-2:])
    image = (F.pad(frame, pad)[None] - s["Encoder_Q.mean"]) / s["Encoder_Q.std"]
    r2, r3, r4 = _trunk(s, "Encoder_Q", _conv(s, "Encoder_Q.conv1", image, 2))
    key, value = _conv(s, "KV_Q_r4.Key", r4)[0], _conv(s, "KV_Q_r4.Value", r4)
    m4 = torch.cat([_read(keys, values, key), value.expand(len(keys), -1, -1, -1)], dim=1)
    own = torch.softmax(_decode(s, m4, r3, r2), dim=1)[:, 1]  # each object against all else
    background = torch.prod(1 - own, dim=0, keepdim=True)
    unused = torch.zeros(unused_rows, *own.shape[1:], dtype=own.dtype)
    p = torch.cat([background, own, unused]).clamp(1e-7, 1 - 1e-7)
    logit = torch.log(p / (1 - p))
    logit = logit[:, top : top + frame.shape[-2], left : left + frame.shape[-1]]
    return torch.softmax(logit, dim=0)[: 1 + len(own)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: two on a busy 2-core machine take 40 s for these tests instead of 5 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
@torch.no_grad()
def transcribe(
    state: State,
    frames: NDArray[np.uint8],
    first_mask: NDArray[np.uint8],
    *,
    memory_every: int = 5,
    unused_rows: int = 0,
) -> NDArray[np.float64]:
    """Probabilities [T,1+O,H,W] of frames [T,H,W,3] given frame 0's ids 0..O [H,W].

    The official script always carries 11 rows: its numbers are those of unused_rows = 10 - O,
    where each empty row takes about 1e-7 of the probability. Zero leaves {0..O} alone.
    """
    s = {name: tensor.double() for name, tensor in state.items()}
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
    ids = torch.arange(int(first_mask.max()) + 1)
    probabilities = [(torch.from_numpy(first_mask)[None] == ids[:, None, None]).double()]
    kept: list[tuple[Tensor, Tensor]] = []
    for t in range(1, len(video)):
        newest = _memorize(s, video[t - 1], probabilities[t - 1][1:])
        memory = [*kept, newest]
        keys = torch.stack([key for key, _ in memory], dim=2)
        values = torch.stack([value for _, value in memory], dim=2)
        probabilities.append(_segment(s, video[t], keys, values, unused_rows))
        if (t - 1) % memory_every == 0:
            kept = memory
    return torch.stack(probabilities).numpy()
