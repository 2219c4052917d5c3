"""Proposals from a COCO JSON file: reading, errors, and writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from vosengine.detectors import open_proposals
from vosengine.detectors.file import FileSource, write_proposals
from vosengine.errors import ConfigError, InputError, OutputError
from vosengine.proposals import Proposals, boxes_of, check_proposals

SIZE = (40, 60)
FRAME = np.zeros((*SIZE, 3), np.uint8)


def square(top: int, left: int, side: int = 8) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """As pycocotools writes it."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def content() -> dict[str, Any]:
    """Two frames of two proposals and none."""
    images = [{"id": 7, "height": 40, "width": 60}, {"id": "b", "height": 40, "width": 60}]
    annotations = [
        {"image_id": 7, "segmentation": encoded(square(2, 3)), "score": 0.25},
        {
            "image_id": 7,
            "segmentation": encoded(square(20, 30)),
            "score": 0.75,
            "bbox": [29.5, 19, 10, 11],
        },
    ]
    return {"images": images, "annotations": annotations}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Any], FileSource]:
    def write_and_open(document: Any) -> FileSource:
        path = tmp_path / "proposals.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return FileSource(path)

    return write_and_open


Opened = Callable[[Any], FileSource]


def test_masks_boxes_and_scores_come_back_best_first(opened: Opened) -> None:
    source = opened(content())
    proposals = source(FRAME, 0)
    np.testing.assert_array_equal(proposals.masks[0].numpy(), square(20, 30))
    np.testing.assert_array_equal(proposals.masks[1].numpy(), square(2, 3))
    assert proposals.boxes.tolist() == [[29.5, 19, 39.5, 30], [3, 2, 11, 10]]
    assert proposals.scores.tolist() == [0.75, 0.25]
    assert len(source(torch.from_numpy(FRAME), 1)) == 0
    assert len(source) == 2


def test_whole_numbers_are_boxes_and_scores_too(opened: Opened) -> None:
    document = content()
    for annotation in document["annotations"]:
        annotation |= {"bbox": [1, 2, 3, 4], "score": 1}
    proposals = opened(document)(FRAME, 0)
    check_proposals(proposals, SIZE)
    assert proposals.boxes.tolist() == [[1, 2, 4, 6]] * 2


def test_every_form_of_a_mask_is_read(opened: Opened) -> None:
    document = content()
    numbers = {"size": [40, 60], "counts": [120, 40, 2240]}
    triangle = [[10, 5, 30, 5, 30, 25]]
    pieces = [[1, 1, 5, 1, 5, 5, 1, 5], [20, 20, 26, 20, 26, 26, 20, 26]]
    forms = (numbers, triangle, pieces)
    document["annotations"] = [{"image_id": 7, "segmentation": form} for form in forms]
    proposals = opened(document)(FRAME, 0)
    assert proposals.scores.tolist() == [1, 1, 1]
    column, drawn, joined = proposals.masks
    assert column[:, 3].all() and int(column.sum()) == 40
    assert drawn[8, 28] and not drawn[20, 12]
    assert abs(int(drawn.sum()) - 200) < 25
    assert joined[3, 3] and joined[23, 23] and not joined[12, 12]
    assert torch.equal(proposals.boxes, boxes_of(proposals.masks))


NO_MASK: tuple[dict[str, Any], ...] = ({}, {"segmentation": []}, {"segmentation": None})


@pytest.mark.parametrize("missing", NO_MASK)
def test_a_box_alone_is_an_error_unless_boxes_are_masks(
    missing: dict[str, Any], opened: Opened, tmp_path: Path
) -> None:
    document = content()
    document["annotations"][0] = {"image_id": 7, "bbox": [3.5, 2, 8, 8.6], "score": 0.9, **missing}
    wanted = r"annotations\[0\]: segmentation: wanted .*, given none; or .* --boxes-as-masks"
    with pytest.raises(InputError, match=wanted):
        opened(document)
    source = FileSource(tmp_path / "proposals.json", boxes_as_masks=True)
    assert source.notes == {"boxes_as_masks": 1}
    proposals = source(FRAME, 0)
    assert boxes_of(proposals.masks)[0].tolist() == [3, 2, 11, 11]  # centres of pixels decide
    assert int(proposals.masks[0].sum()) == 72
    np.testing.assert_array_equal(proposals.masks[1].numpy(), square(20, 30))


@pytest.mark.parametrize("missing", NO_MASK)
def test_neither_mask_nor_box_is_an_error_either_way(
    missing: dict[str, Any], opened: Opened, tmp_path: Path
) -> None:
    document = content()
    document["annotations"][0] = {"image_id": 7, **missing}
    for boxes in (False, True):
        with pytest.raises(InputError, match=r"annotations\[0\]: segmentation: .*, given none$"):
            opened(document)
        with pytest.raises(InputError, match=r"annotations\[0\]: segmentation: .*, given none$"):
            FileSource(tmp_path / "proposals.json", boxes_as_masks=boxes)


def test_ids_in_any_order_categories_and_crowds_as_coco_has_them(opened: Opened) -> None:
    document = content()
    document["images"] = [{**document["images"][0], "id": 9000}, {**document["images"][1], "id": 3}]
    first, second = document["annotations"]
    document["annotations"] = [
        {**second, "image_id": 3, "id": 77, "category_id": 90, "iscrowd": 0},
        {**first, "image_id": 9000, "id": 5, "category_id": 1},
        {**second, "image_id": 9000, "id": 1, "category_id": 1, "iscrowd": 1},
    ]
    document["categories"] = [{"id": 1, "name": "person"}]
    source = opened(document)
    assert (len(source(FRAME, 0)), len(source(FRAME, 1))) == (1, 1)
    np.testing.assert_array_equal(source(FRAME, 0).masks[0].numpy(), square(2, 3))
    np.testing.assert_array_equal(source(FRAME, 1).masks[0].numpy(), square(20, 30))
    assert source.notes == {"crowds_left_out": 1}
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(InputError, match="nothing but regions of many objects"):
        opened(document)


def test_runs_that_overflow_and_lists_without_end_are_refused(opened: Opened) -> None:
    source = opened(change(*RLE, "counts", to="o" * 6 + "O" + "o" * 6 + "O" * 3)())
    with pytest.raises(InputError, match="the mask cannot be decoded: a run of"):
        source(FRAME, 0)
    with pytest.raises(InputError, match=r"proposals\.json: not valid JSON"):
        opened("[" * 100_000)


def test_frame_index_says_otherwise_than_the_order(opened: Opened) -> None:
    document = content()
    document["images"][0]["frame_index"], document["images"][1]["frame_index"] = 5, 0
    source = opened(document)
    assert (len(source(FRAME, 0)), len(source(FRAME, 5))) == (0, 2)


def test_names_are_compared_by_stem(opened: Opened) -> None:
    """If only some entries have a file_name, they stay in order."""
    document = content()
    document["images"][0]["file_name"] = "JPEGImages/480p/00000.jpg"
    opened(document).match(["00000", "whatever: no name there"], None)
    with pytest.raises(InputError, match=r"unknown frames: frame 0 is 'JPEG.*' there and 'a' in"):
        opened(document).match(["a", "00001"], None)


def named(*names: str) -> dict[str, Any]:
    document = content()
    for image, name in zip(document["images"], names, strict=True):
        image["file_name"] = name
    return document


@pytest.mark.parametrize(
    ("files", "names", "length"),
    [
        (("b.jpg", "JPEGImages/a.jpg"), ["a", "b"], None),
        (("00001.jpg", "00000.jpg"), None, 2),
        (("frame_1.jpg", "frame_0.jpg"), None, 2),
        (("cam2_017.png", "cam2_009.png"), ["shot-009", "shot-017"], None),
    ],
)
def test_shuffled_entries_are_matched_by_name_or_else_by_number(
    files: tuple[str, str], names: list[str] | None, length: int | None, opened: Opened
) -> None:
    source = opened(named(*files))
    source.match(names, length)
    assert (len(source(FRAME, 0)), len(source(FRAME, 1))) == (0, 2)


@pytest.mark.parametrize(
    ("given", "names", "length", "message"),
    [
        (named("a.jpg", "d.jpg"), ["a", "b"], None, "1 of 2 match no frame: d; wanted the names"),
        (named("0.jpg", "2.jpg"), None, 2, r"1 of 2 match no frame: 2; .* counted from 0"),
        (named("a.jpg", "c.jpg"), ["a", "b", "c"], None, "no entry in images for 1 of 3 frames: b"),
        (content(), ["a"], None, r"1 entries in images belong to no frame: that of frame 1; the"),
        (content(), None, 1, r"belong to no frame: that of frame 1; the video has 1 frames"),
        (content(), ["a", "b", "c"], None, "no entry in images for 1 of 3 frames: c; wanted one"),
    ],
)
def test_entries_and_frames_that_stand_alone_are_refused(
    given: Any, names: list[str] | None, length: int | None, message: str, opened: Opened
) -> None:
    with pytest.raises(InputError, match=message):
        opened(given).match(names, length)


def test_frames_beyond_the_limit_need_no_entry(opened: Opened) -> None:
    opened(named("a.jpg", "b.jpg")).match(["a", "b", "c"], None, limit=2)


def test_a_stream_may_begin_late(opened: Opened) -> None:
    source = opened(content())
    source.first_frame = 1
    assert len(source(FRAME, 0)) == 0


def test_what_any_source_said_is_written_and_said_again(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = []
    for count in (3, 0, 1):
        masks = torch.from_numpy(random.random((count, *SIZE)) < 0.3)
        corners = random.uniform(-3, 30, (count, 2))
        boxes = torch.from_numpy(np.hstack((corners, corners + random.uniform(0, 9, (count, 2)))))
        scores = torch.from_numpy(np.sort(random.random(count))[::-1].copy())
        written.append(Proposals(boxes.float(), masks, scores.float(), torch.ones(count, 4)))
    write_proposals(tmp_path / "said.json", iter(written))
    again = open_proposals(f"file:{tmp_path / 'said.json'}")
    for index, wanted in enumerate(written):
        loaded = again(torch.from_numpy(FRAME), index)
        for name in ("boxes", "masks", "scores"):
            assert torch.equal(getattr(loaded, name), getattr(wanted, name)), name
        assert loaded.embeddings is None


def test_only_proposals_are_written_and_a_failure_leaves_no_file(tmp_path: Path) -> None:
    good = Proposals(torch.zeros(1, 4), torch.ones(1, *SIZE, dtype=torch.bool), torch.ones(1))
    for wrong in ({"masks": good.masks}, Proposals(good.boxes, good.masks, torch.ones(2))):
        with pytest.raises(InputError, match=r"^proposals: "):
            write_proposals(tmp_path / "p.json", [good, wrong])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot be written"):
        write_proposals(tmp_path / "no" / "folder.json", [good])


def change(*path: Any, to: Any) -> Callable[[], Any]:
    """The valid content with one value changed; ... removes the entry."""

    def changed() -> Any:
        document = content()
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        if to is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = to
        return document

    return changed


RLE = ("annotations", 0, "segmentation")


@pytest.mark.parametrize(
    ("make_document", "message"),
    [
        (lambda: "{", "not valid JSON"),
        (lambda: "[]", r'holds a list; wanted {"images"'),
        (change("images", to=...), "images: no list of objects; wanted"),
        (change("annotations", to=[3]), "annotations: no list of objects"),
        (change("images", 1, "id", to=7), r"images\[1\]: a second entry with id 7"),
        (change("images", 0, "id", to=...), r"images\[0\]: id: wanted .* given None"),
        (change("images", 1, "frame_index", to=0), r"images\[1\]: a second entry for frame 0"),
        (change("images", 0, "frame_index", to=-1), "frame_index: wanted 0 or .* given -1"),
        (change("images", 0, "file_name", to=3), "file_name: wanted a text, given 3"),
        (change("images", 0, "height", to=...), r"height and width: .* given \[None, 60\]"),
        (
            change("annotations", 1, "image_id", to=8),
            r"annotations\[1\]: image_id 8 is .* no entry",
        ),
        (change("annotations", 1, "image_id", to=[7]), r"image_id \[7\] is the id of no entry"),
        (change(*RLE, "size", to=[60, 40]), r"of size \[60, 40\], its image \[40, 60\]"),
        (change(*RLE, "counts", to=...), "segmentation: wanted"),
        (change(*RLE, to=[[1, 2, 3, 4]]), "segmentation: wanted"),
        (change(*RLE, to=[[1, 2, 3, 4, 5]]), "segmentation: wanted"),
        (change(*RLE, to=[[0, 0, 1e9, 0, 3, 3]]), "more than one frame beyond"),
        (change("annotations", 0, "segmentation", to=...), "segmentation: wanted"),
        (change("images", 0, "id", to=True), "id: wanted a number or a text, given True"),
        (change("annotations", 0, "iscrowd", to=2), "iscrowd: wanted 0 or 1, given 2"),
        (change("annotations", 0, "category_id", to="cat"), "category_id: wanted a whole number"),
        (change("annotations", 0, "score", to=float("nan")), "score: wanted a finite .* given nan"),
        (change("annotations", 0, "score", to=10**400), "score: wanted a finite number"),
        (change("annotations", 0, "score", to="0.5"), "score: wanted a finite number, given '0.5'"),
        (change("annotations", 0, "bbox", to=[1, 2, 3]), r"bbox: wanted \[left, top, width"),
        (change("annotations", 0, "bbox", to=[1, 2, 3, -4]), r"bbox: .* given \[1, 2, 3, -4\]"),
    ],
)
def test_a_file_that_is_not_one_is_refused_at_once(
    make_document: Callable[[], Any], message: str, opened: Opened
) -> None:
    with pytest.raises(InputError, match=r"proposals\.json: .*" + message):
        opened(make_document())


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read .*No such file"):
        FileSource(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.json: not valid JSON"):
        FileSource(tmp_path / "binary.json")


@pytest.mark.parametrize(
    "counts", ["", "zz", encoded(square(2, 3))["counts"][:-1], [1, 2], [2400, 1], [-1, 2401]]
)
def test_a_damaged_mask_is_named_when_its_frame_is_asked_for(counts: Any, opened: Opened) -> None:
    source = opened(change(*RLE, "counts", to=counts)())
    assert len(source(FRAME, 1)) == 0
    with pytest.raises(InputError, match=r"frame 0: annotations\[0\]: the mask cannot be decoded"):
        source(FRAME, 0)


def test_a_frame_that_is_not_there_and_one_of_another_size(opened: Opened) -> None:
    source = opened(content())
    with pytest.raises(InputError, match=r"no entry in images for frame 2 \(it has 2 frames\)"):
        source(FRAME, 2)
    with pytest.raises(InputError, match="masks are 40 x 60, the frame is 60 x 40"):
        source(FRAME.transpose(1, 0, 2), 0)


def test_only_a_file_has_boxes_for_masks() -> None:
    with pytest.raises(ConfigError, match="boxes_as_masks: is for proposals from a file"):
        open_proposals("dnet", boxes_as_masks=True)


@pytest.mark.parametrize(
    "text", ["", "dnet:", "file", "file:", "yolo:x.pt", "torchvision", "a.json"]
)
def test_an_unknown_source_is_told_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match="no source is named") as raised:
        open_proposals(text)
    for form in ("dnet", "dnet:TAG", "file:FILE.json", "torchvision:FILE.pth"):
        assert form in str(raised.value)
