"""Proposals from a COCO JSON file, the stored output of any detector; reader and writer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..files import write_whole
from ..frames import Array
from ..naming import listed, match_frames
from ..proposals import Proposals, boxes_of, check_proposals
from ..rle import decode, encode
from ..types import Size

LARGEST = float(np.finfo(np.float32).max)
SEGMENTATION = (
    'segmentation: wanted {"size": [height, width], "counts": text or numbers}, or a list of '
    "polygons [x, y, x, y, x, y, ...]"
)
STRUCTURE = 'wanted {"images": [...], "annotations": [...]}, as in COCO'


@dataclass
class FrameEntry:
    """An entry of `images`, and its annotations, best first."""

    image_id: int | str
    name: str | None
    size: Size
    annotations: list[Annotation] = field(default_factory=list)
    placed: bool = False  # has a "frame_index"


@dataclass(frozen=True)
class Annotation:
    """A proposal with its encoded mask; segmentation None: the box; number: index in the file."""

    number: int
    segmentation: Any
    score: float
    box: tuple[float, float, float, float] | None


class FileSource:
    """Proposals from a COCO JSON file; a ProposalSource.

        {"images": [{"id": 7, "height": 480, "width": 854, "file_name": "00000.jpg"}],
         "annotations": [{"image_id": 7, "score": 0.93, "bbox": [420, 100, 60, 210],
                          "segmentation": {"size": [480, 854], "counts": "WPi2..."}}]}

    `images` has one entry per frame, in video order unless an optional "frame_index" is given;
    `match` orders them by "file_name". A frame without annotations has no proposals. A segmentation
    is run-length encoded, as text or as numbers, or a list of polygons. The default of "bbox"
    (left, top, width, height) is the mask's bounding box, that of "score" is 1. Annotations with
    "iscrowd" 1 (COCO: a region of many objects) are not used as proposals. "category_id" and "id"
    must be integers and have no effect. All other fields are ignored.

    The file is read and checked at once; masks are decoded when their frame is requested.

    boxes_as_masks  an annotation without a segmentation, or with an empty list, has its whole box
                    as mask; otherwise it is an error

    Raises  InputError if the file is missing, not JSON or of another structure; for two entries for
            one frame, an annotation of an unknown image, a mask whose size differs from its
            image's, and a score or box that is not a finite number.
    """

    def __init__(self, path: str | Path, *, boxes_as_masks: bool = False) -> None:
        self.path = Path(path)
        self.first_frame = 0  # index in the video of the stream's first frame
        self._frames, self._crowds = _parse(self.path, boxes_as_masks)
        self._boxes_as_masks = boxes_as_masks

    @property
    def notes(self) -> dict[str, int]:
        """Counts for a run's summary: `crowds_left_out`, the annotations with iscrowd 1 (if any);
        `boxes_as_masks`, the boxes used as masks (with that option)."""
        annotations = [a for entry in self._frames.values() for a in entry.annotations]
        notes = {"crowds_left_out": self._crowds} if self._crowds else {}
        if self._boxes_as_masks:
            notes["boxes_as_masks"] = sum(a.segmentation is None for a in annotations)
        return notes

    def __len__(self) -> int:
        return len(self._frames)

    def __call__(self, frame: Array, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3], best first, on the CPU.

        Raises  InputError if the file lacks the frame or has it at another size, or a mask cannot
                be decoded.
        """
        height, width = int(frame.shape[0]), int(frame.shape[1])
        frame_index += self.first_frame
        entry = self._frames.get(frame_index)
        if entry is None:
            raise InputError(
                f"{self.path}: has no entry in images for frame {frame_index} (it has "
                f"{len(self)} frames); wanted one for every frame, also without detections"
            )
        if entry.size != (height, width):
            raise InputError(
                f"{self.path}: frame {frame_index}: masks are {entry.size[0]} x {entry.size[1]}, "
                f"the frame is {height} x {width}; run the detector at the frames' own size"
            )
        masks = torch.zeros(len(entry.annotations), height, width, dtype=torch.bool)
        for row, annotation in enumerate(entry.annotations):
            try:
                masks[row] = torch.from_numpy(_decode(annotation, entry.size))
            except ValueError as error:
                raise InputError(
                    f"{self.path}: frame {frame_index}: annotations[{annotation.number}]: the mask "
                    f"cannot be decoded: {error}; write the file again"
                ) from error
        stored = [annotation.box for annotation in entry.annotations]
        boxes = torch.tensor([box or (0, 0, 0, 0) for box in stored], dtype=torch.float32)
        boxes = boxes.view(-1, 4)
        boxless = [row for row, box in enumerate(stored) if box is None]
        boxes[boxless] = boxes_of(masks[boxless])
        scores = torch.tensor([a.score for a in entry.annotations], dtype=torch.float32)
        return Proposals(boxes, masks, scores)

    def match(
        self, names: Sequence[str] | None, length: int | None, limit: int | None = None
    ) -> None:
        """Match the entries to the frames of a video, before it is read.

        names   names of its frames, in order; None if they are only numbered
        length  number of frames, or None if unknown
        limit   number of frames that will be requested; None: all

        If every entry has a "file_name" and none a "frame_index", entries are matched by name or
        else by number (see `match_frames`). Otherwise their order is kept, and the names present
        must equal the frames'.

        Raises  InputError for entries without a frame, frames without an entry, and names of other
                frames.
        """
        entries = list(self._frames.values())
        if all(entry.name is not None and not entry.placed for entry in entries):
            stems = [PurePath(entry.name or "").stem for entry in entries]
            frames, _ = match_frames(stems, names, length, f"{self.path}: images")
            self._frames = dict(zip(frames, entries, strict=True))
        else:
            self._check_names((names or ())[:limit])
        self.check_reached(len(names) if names is not None else length)
        missing = [
            name for index, name in enumerate((names or ())[:limit]) if index not in self._frames
        ]
        if missing:
            raise InputError(
                f"{self.path}: has no entry in images for {len(missing)} of {len(names or ())} "
                f"frames: {listed(missing)}; wanted one for every frame, also without detections"
            )

    def check_reached(self, frames: int | None) -> None:
        """Raise InputError for entries beyond the last frame; frames: number of frames, or None if
        unknown."""
        late = [index for index in self._frames if frames is not None and index >= frames]
        if late:
            entries = [self._frames[i].name or f"that of frame {i}" for i in sorted(late)]
            raise InputError(
                f"{self.path}: {len(late)} entries in images belong to no frame: "
                f"{listed(entries)}; the video has {frames} frames, wanted one entry for each"
            )

    def _check_names(self, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            entry = self._frames.get(index)
            if entry is not None and entry.name is not None and PurePath(entry.name).stem != name:
                raise InputError(
                    f"{self.path}: names unknown frames: frame {index} is {entry.name!r} there and "
                    f"{name!r} in the video; wanted the proposals of this video, one entry in "
                    "images per frame, in order or all with a file_name"
                )


def write_proposals(path: str | Path, frames: Iterable[Proposals]) -> None:
    """Write proposals to a COCO JSON file for FileSource; embeddings are not stored.

    path    the file; an existing one is replaced, atomically
    frames  the proposals of every frame of a video, in order

    Raises  InputError for invalid proposals, OutputError if the file cannot be written.
    """
    path = Path(path)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, proposals in enumerate(frames):
        size = _size_of(proposals)
        check_proposals(proposals, size)
        images.append({"id": index, "height": size[0], "width": size[1]})
        rows = zip(
            proposals.masks.cpu().numpy(),
            proposals.boxes.tolist(),
            proposals.scores.tolist(),
            strict=True,
        )
        annotations += [
            {
                "image_id": index,
                "score": score,
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {"size": list(size), "counts": encode(mask)},
            }
            for mask, (left, top, right, bottom), score in rows
        ]
    write_whole(path, json.dumps({"images": images, "annotations": annotations}) + "\n")


def _size_of(proposals: Proposals) -> Size:
    shape = tuple(getattr(getattr(proposals, "masks", None), "shape", ()))
    return (int(shape[-2]), int(shape[-1])) if len(shape) == 3 else (0, 0)


def _parse(path: Path, boxes_as_masks: bool) -> tuple[dict[int, FrameEntry], int]:
    """Entries by frame index, and the number of annotations with iscrowd 1."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); wanted a JSON file of proposals"
        ) from error
    except (ValueError, RecursionError) as error:  # text encoding or JSON
        raise InputError(f"{path}: not valid JSON ({error}); write the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; {STRUCTURE}")
    for part in ("images", "annotations"):
        entries = content.get(part)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise InputError(f"{path}: {part}: no list of objects; {STRUCTURE}")
    frames: dict[int, FrameEntry] = {}
    by_id: dict[int | str, FrameEntry] = {}
    for number, fields in enumerate(content["images"]):
        entry, index = _read_image(f"{path}: images[{number}]", fields, number)
        if index in frames:
            raise InputError(
                f"{path}: images[{number}]: a second entry for frame {index}; wanted one per frame"
            )
        if entry.image_id in by_id:
            raise InputError(
                f"{path}: images[{number}]: a second entry with id {entry.image_id!r}; wanted "
                "another id for every frame"
            )
        frames[index] = by_id[entry.image_id] = entry
    crowds = 0
    for number, fields in enumerate(content["annotations"]):
        place = f"{path}: annotations[{number}]"
        image_id = fields.get("image_id")
        if type(image_id) not in (int, str) or image_id not in by_id:
            raise InputError(f"{place}: image_id {image_id!r} is the id of no entry in images")
        entry = by_id[image_id]
        annotation = _read_annotation(place, fields, number, entry.size, boxes_as_masks)
        if _is_crowd(place, fields):
            crowds += 1
        else:
            entry.annotations.append(annotation)
    if crowds and crowds == len(content["annotations"]):
        raise InputError(
            f"{path}: holds nothing but regions of many objects (iscrowd 1), which are not used as "
            "proposals; set iscrowd to 0 for single objects"
        )
    for entry in frames.values():
        entry.annotations.sort(key=lambda annotation: -annotation.score)
    return frames, crowds


def _is_crowd(place: str, fields: dict[str, Any]) -> bool:
    for name in ("id", "category_id"):
        if name in fields and type(fields[name]) is not int:
            raise InputError(f"{place}: {name}: wanted a whole number, given {fields[name]!r}")
    crowd = fields.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise InputError(f"{place}: iscrowd: wanted 0 or 1, given {crowd!r}")
    return bool(crowd)


def _read_image(place: str, fields: dict[str, Any], number: int) -> tuple[FrameEntry, int]:
    """An entry of `images`, and the index of its frame."""
    image_id, name, index = fields.get("id"), fields.get("file_name"), fields.get("frame_index")
    if not isinstance(image_id, int | str) or isinstance(image_id, bool):
        raise InputError(f"{place}: id: wanted a number or a text, given {image_id!r}")
    if name is not None and not isinstance(name, str):
        raise InputError(f"{place}: file_name: wanted a text, given {name!r}")
    if index is not None and (type(index) is not int or index < 0):
        raise InputError(f"{place}: frame_index: wanted 0 or a number above, given {index!r}")
    size = fields.get("height"), fields.get("width")
    height, width = size
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise InputError(f"{place}: height and width: wanted pixels, given {list(size)}")
    entry = FrameEntry(image_id, name, (height, width), placed=index is not None)
    return entry, number if index is None else index


def _read_annotation(
    place: str, fields: dict[str, Any], number: int, size: Size, boxes_as_masks: bool
) -> Annotation:
    segmentation = fields.get("segmentation")
    if segmentation in (None, []):  # some programs write an empty list for a box only
        if fields.get("bbox") is None or not boxes_as_masks:
            hint = ""
            if fields.get("bbox") is not None:
                hint = "; or use the box as mask with --boxes-as-masks (boxes_as_masks=True)"
            raise InputError(f"{place}: {SEGMENTATION}, given none{hint}")
        segmentation = None
    else:
        _check_segmentation(place, segmentation, size)
    score = fields.get("score", 1.0)
    if not _are_numbers([score]):
        raise InputError(f"{place}: score: wanted a finite number, given {score!r}")
    box = fields.get("bbox")
    if box is None:
        return Annotation(number, segmentation, float(score), None)
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box) or min(box[2:]) < 0:
        raise InputError(
            f"{place}: bbox: wanted [left, top, width, height], finite, the last two not below 0, "
            f"given {box!r}"
        )
    left, top, width, height = box
    return Annotation(number, segmentation, float(score), (left, top, left + width, top + height))


def _check_segmentation(place: str, segmentation: Any, size: Size) -> None:
    """Check the structure and the stated size of a segmentation, without decoding it."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise InputError(
                f"{place}: the mask is of size {segmentation.get('size')}, its image "
                f"{list(size)} (height, width); wanted the same"
            )
        if isinstance(segmentation.get("counts"), str | list):
            return
    elif isinstance(segmentation, list) and all(map(_is_polygon, segmentation)):
        # A margin of one frame: pycocotools allocates memory for the area outside as well.
        height, width = size
        if all(
            -limit <= value <= 2 * limit
            for polygon in segmentation
            for values, limit in ((polygon[::2], width), (polygon[1::2], height))
            for value in values
        ):
            return
        raise InputError(f"{place}: a polygon extends more than one frame beyond its image")
    raise InputError(f"{place}: {SEGMENTATION}")


def _is_polygon(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and _are_numbers(part)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) <= LARGEST for value in values)


def _decode(annotation: Annotation, size: Size) -> np.ndarray:
    """Decode the mask, bool [H, W]. Raises ValueError for invalid runs."""
    segmentation = annotation.segmentation
    if segmentation is None:
        assert annotation.box is not None
        return _filled(annotation.box, size)
    if isinstance(segmentation, dict):
        return decode(segmentation["counts"], size)
    from pycocotools import mask as coco  # only for polygons

    mask = np.zeros(size, bool)
    for encoded in coco.frPyObjects(segmentation, *size):
        mask |= decode(encoded["counts"].decode("ascii"), size)
    return mask


def _filled(box: tuple[float, float, float, float], size: Size) -> np.ndarray:
    """A box as a mask, bool [H, W]: the pixels whose centres lie in it."""
    y, x = (np.arange(side) + 0.5 for side in size)
    left, top, right, bottom = box
    mask: np.ndarray = ((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right))
    return mask
