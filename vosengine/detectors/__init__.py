"""Sources of object proposals, opened by name."""

from __future__ import annotations

from ..errors import ConfigError
from ..proposals import ProposalSource
from .dnet import DNetSource
from .file import FileSource
from .torchvision import TorchvisionSource

# The forms of `open_proposals`, for messages and the command line.
FORMS = {
    "dnet": "target_aware's D-Net with the weights that ship",
    "dnet:TAG or dnet:FILE": "the same with other weights",
    "file:FILE.json": "masks of any detector, in COCO's form",
    "torchvision:FILE.pth": "torchvision's Mask R-CNN with weights of your own",
}


def open_proposals(
    text: str, device: str = "auto", *, boxes_as_masks: bool = False
) -> ProposalSource:
    """Open a proposal source.

    text            "dnet", "dnet:TAG", "dnet:FILE.safetensors", "file:FILE.json" or
                    "torchvision:FILE.pth"
    device          "auto", "cpu", "cuda"...; not used by "file"
    boxes_as_masks  for "file", as in FileSource; ConfigError for any other source

    Returns  the source; its proposals have no embeddings (models compute their own)

    Raises  ConfigError for any other text, and the source's own errors: InputError, WeightsError,
            DeviceError, DependencyError.
    """
    kind, colon, argument = text.partition(":")
    if boxes_as_masks and kind != "file":
        raise ConfigError(
            f"boxes_as_masks: is for proposals from a file, given {text!r}; leave it out"
        )
    if kind == "dnet" and (argument or not colon):
        return DNetSource(weights=argument or None, device=device, embed=False)
    if kind == "file" and argument:
        return FileSource(argument, boxes_as_masks=boxes_as_masks)
    if kind == "torchvision" and argument:
        return TorchvisionSource(argument, device=device)
    forms = "; ".join(f"{form} ({what})" for form, what in FORMS.items())
    raise ConfigError(f"proposals: no source is named {text!r}; wanted {forms}")
