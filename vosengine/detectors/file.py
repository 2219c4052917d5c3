"""Proposals from a file in COCO's form: any detector's output, stored once, read by frame."""

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
STRUCTURE = 'wanted {"images": [...], "annotations": [...]}, as COCO has them'


@dataclass
class FrameEntry:
    """What the file says of one frame: an entry of `images`, and its annotations, best first."""

    image_id: int | str
    name: str | None
    size: Size
    annotations: list[Annotation] = field(default_factory=list)
    placed: bool = False  # by "frame_index"


@dataclass(frozen=True)
class Annotation:
    """One proposal, its mask still encoded; None: the box's. `number` is its place in the file."""

    number: int
    segmentation: Any
    score: float
    box: tuple[float, float, float, float] | None


class FileSource:
    """A ProposalSource: what a file in COCO's form says of every frame.

        {"images": [{"id": 7, "height": 480, "width": 854, "file_name": "00000.jpg"}],
         "annotations": [{"image_id": 7, "score": 0.93, "bbox": [420, 100, 60, 210],
                          "segmentation": {"size": [480, 854], "counts": "WPi2..."}}]}

    `images` has one entry for each frame, in the order of the video; an optional "frame_index" says
    otherwise, and `match` puts them in order by "file_name". A frame without annotations has no
    proposals. A segmentation is run-length encoded, as text or as numbers, or a list of polygons.
    Without "bbox" (left, top, width, height) the box is the mask's, without "score" the score is 1.
    An annotation with "iscrowd" 1 is a region of many objects, as COCO says, and no proposal.
    "category_id" and "id" are whole numbers, and change nothing. What else the file holds is not
    read.

    The file is read and checked at once, masks are decoded when their frame is asked for.

    boxes_as_masks  an annotation without a segmentation, or with an empty list, stands for all of
                    its box; it is an error otherwise

    Raises  InputError: no such file, no JSON, another structure, two entries for one frame, an
            annotation of no image, a mask that is not of its image's size, a score or a box that is
            no number.
    """

    def __init__(self, path: str | Path, *, boxes_as_masks: bool = False) -> None:
        self.path = Path(path)
        self.first_frame = 0  # of the video, where the caller's streams begin
        self._frames, self._crowds = _parse(self.path, boxes_as_masks)
        self._boxes_as_masks = boxes_as_masks

    @property
    def notes(self) -> dict[str, int]:
        """What the summary of a run is to say: how many boxes stand for masks, where that was
        asked for, and how many regions of many objects were left out, where there are any."""
        annotations = [a for entry in self._frames.values() for a in entry.annotations]
        notes = {"crowds_left_out": self._crowds} if self._crowds else {}
        if self._boxes_as_masks:
            notes["boxes_as_masks"] = sum(a.segmentation is None for a in annotations)
        return notes

    def __len__(self) -> int:
        return len(self._frames)

    def __call__(self, frame: Array, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3], best first, on the CPU.

        Raises  InputError: the file lacks the frame, has it at another size, or a mask in it is
                damaged.
        """
        height, width = int(frame.shape[0]), int(frame.shape[1])
        frame_index += self.first_frame
        entry = self._frames.get(frame_index)
        if entry is None:
            raise InputError(
                f"{self.path}: has no entry in images for frame {frame_index} (it has "
                f"{len(self)} frames); wanted one for every frame, also where nothing was seen"
            )
        if entry.size != (height, width):
            raise InputError(
                f"{self.path}: frame {frame_index}: masks are {entry.size[0]} x {entry.size[1]}, "
                f"the frame is {height} x {width}; run the detector on the frames as they are"
            )
        masks = torch.zeros(len(entry.annotations), height, width, dtype=torch.bool)
        for row, annotation in enumerate(entry.annotations):
            try:
                masks[row] = torch.from_numpy(_decode(annotation, entry.size))
            except ValueError as error:
                raise InputError(
                    f"{self.path}: frame {frame_index}: annotations[{annotation.number}]: the mask "
                    f"cannot be decoded: {error}; write the file anew"
                ) from error
        given = [annotation.box for annotation in entry.annotations]
        boxes = torch.tensor([box or (0, 0, 0, 0) for box in given], dtype=torch.float32)
        boxes = boxes.view(-1, 4)
        boxless = [row for row, box in enumerate(given) if box is None]
        boxes[boxless] = boxes_of(masks[boxless])
        scores = torch.tensor([a.score for a in entry.annotations], dtype=torch.float32)
        return Proposals(boxes, masks, scores)

    def match(
        self, names: Sequence[str] | None, length: int | None, limit: int | None = None
    ) -> None:
        """Hold the entries against the frames of a video, before it is read.

        names   of its frames, in order; None where they are numbered only
        length  how many there are; None where nobody knows
        limit   only that many frames will be asked for; None: all

        Where every entry has a "file_name" and none a "frame_index", they are put in the order of
        the frames, by name or else by number (see `match_frames`). Otherwise they stay as they are,
        and the names that there are have to be the frames'.

        Raises  InputError: entries that belong to no frame, frames that have none, names of other
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
                f"frames: {listed(missing)}; wanted one for every frame, also where nothing was "
                "seen"
            )

    def check_reached(self, frames: int | None) -> None:
        """Raise InputError for entries of frames that are not there: `frames` are all; None: nobody
        knows."""
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
    """Write what a source said of every frame of a video, in order, so that FileSource says it
    again. Embeddings are left out.

    Raises  InputError for what are no proposals, OutputError where the file cannot be written.
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
    """Every frame's entry by its index, and how many regions of many objects were left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); wanted a JSON file of proposals"
        ) from error
    except (ValueError, RecursionError) as error:  # of the encoding, or of the JSON
        raise InputError(f"{path}: not valid JSON ({error}); write the file anew") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; {STRUCTURE}")
    for part in ("images", "annotations"):
        entries = content.get(part)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise InputError(f"{path}: {part}: no list of objects; {STRUCTURE}")
    frames: dict[int, FrameEntry] = {}
    by_id: dict[int | str, FrameEntry] = {}
    for number, given in enumerate(content["images"]):
        entry, index = _read_image(f"{path}: images[{number}]", given, number)
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
    for number, given in enumerate(content["annotations"]):
        place = f"{path}: annotations[{number}]"
        image_id = given.get("image_id")
        if type(image_id) not in (int, str) or image_id not in by_id:
            raise InputError(f"{place}: image_id {image_id!r} is the id of no entry in images")
        entry = by_id[image_id]
        annotation = _read_annotation(place, given, number, entry.size, boxes_as_masks)
        if _is_crowd(place, given):
            crowds += 1
        else:
            entry.annotations.append(annotation)
    if crowds and crowds == len(content["annotations"]):
        raise InputError(
            f"{path}: holds nothing but regions of many objects (iscrowd 1), which are no "
            "proposals; set iscrowd to 0 where they are objects"
        )
    for entry in frames.values():
        entry.annotations.sort(key=lambda annotation: -annotation.score)
    return frames, crowds


def _is_crowd(place: str, given: dict[str, Any]) -> bool:
    for name in ("id", "category_id"):
        if name in given and type(given[name]) is not int:
            raise InputError(f"{place}: {name}: wanted a whole number, given {given[name]!r}")
    crowd = given.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise InputError(f"{place}: iscrowd: wanted 0 or 1, given {crowd!r}")
    return bool(crowd)


def _read_image(place: str, given: dict[str, Any], number: int) -> tuple[FrameEntry, int]:
    """An entry of `images`, and the index of its frame."""
    image_id, name, index = given.get("id"), given.get("file_name"), given.get("frame_index")
    if not isinstance(image_id, int | str) or isinstance(image_id, bool):
        raise InputError(f"{place}: id: wanted a number or a text, given {image_id!r}")
    if name is not None and not isinstance(name, str):
        raise InputError(f"{place}: file_name: wanted a text, given {name!r}")
    if index is not None and (type(index) is not int or index < 0):
        raise InputError(f"{place}: frame_index: wanted 0 or a number above, given {index!r}")
    size = given.get("height"), given.get("width")
    height, width = size
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise InputError(f"{place}: height and width: wanted pixels, given {list(size)}")
    entry = FrameEntry(image_id, name, (height, width), placed=index is not None)
    return entry, number if index is None else index


def _read_annotation(
    place: str, given: dict[str, Any], number: int, size: Size, boxes_as_masks: bool
) -> Annotation:
    segmentation = given.get("segmentation")
    if segmentation in (None, []):  # some programs write an empty list where there is a box alone
        if given.get("bbox") is None or not boxes_as_masks:
            hint = ""
            if given.get("bbox") is not None:
                hint = "; or --boxes-as-masks (boxes_as_masks=True), and the box stands for it"
            raise InputError(f"{place}: {SEGMENTATION}, given none{hint}")
        segmentation = None
    else:
        _check_segmentation(place, segmentation, size)
    score = given.get("score", 1.0)
    if not _are_numbers([score]):
        raise InputError(f"{place}: score: wanted a finite number, given {score!r}")
    box = given.get("bbox")
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
    """What can be told without decoding: the form, and the size that a mask says it has."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise InputError(
                f"{place}: the mask is of size {segmentation.get('size')}, its image "
                f"{list(size)} (height, width); wanted the same"
            )
        if isinstance(segmentation.get("counts"), str | list):
            return
    elif isinstance(segmentation, list) and all(map(_is_polygon, segmentation)):
        # A margin of one frame: pycocotools draws what lies outside too, and needs memory for it.
        height, width = size
        if all(
            -limit <= value <= 2 * limit
            for polygon in segmentation
            for values, limit in ((polygon[::2], width), (polygon[1::2], height))
            for value in values
        ):
            return
        raise InputError(f"{place}: a polygon reaches further than one frame beyond its image")
    raise InputError(f"{place}: {SEGMENTATION}")


def _is_polygon(given: Any) -> bool:
    return (
        isinstance(given, list) and len(given) >= 6 and len(given) % 2 == 0 and _are_numbers(given)
    )


def _are_numbers(given: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) <= LARGEST for value in given)


def _decode(annotation: Annotation, size: Size) -> np.ndarray:
    """The mask, bool [H, W]; ValueError where its runs are damaged."""
    segmentation = annotation.segmentation
    if segmentation is None:
        assert annotation.box is not None
        return _filled(annotation.box, size)
    if isinstance(segmentation, dict):
        return decode(segmentation["counts"], size)
    from pycocotools import mask as coco  # for polygons alone

    mask = np.zeros(size, bool)
    for encoded in coco.frPyObjects(segmentation, *size):
        mask |= decode(encoded["counts"].decode("ascii"), size)
    return mask


def _filled(box: tuple[float, float, float, float], size: Size) -> np.ndarray:
    """The pixels whose centres lie in a box, bool [H, W]."""
    y, x = (np.arange(side) + 0.5 for side in size)
    left, top, right, bottom = box
    found: np.ndarray = ((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right))
    return found
