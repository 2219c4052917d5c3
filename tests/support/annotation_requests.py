"""Requests of CVAT and of Label Studio, after their documentation and examples.

They were written by hand after these, not recorded from running programs:
- CVAT: the payload that its lambda manager sends to a function of type "tracker" (image, shapes,
  states), and its TransT function; shapes with a type since June 2025 (before it bare boxes), and
  from then on none for objects that have a state.
- Label Studio: the requests of its ML backend (GET /health, POST /setup, POST /predict with tasks,
  label_config and params.context), and its examples segment_anything_2_image and _video.
"""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

IMAGE_CONFIG = """
<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="Ball"/><Label value="Wall"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true">
    <Label value="Ball" smart="true" showInline="true"/>
  </KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true">
    <Label value="Ball" showInline="true"/>
  </RectangleLabels>
</View>
"""
VIDEO_CONFIG = """
<View>
  <Labels name="videoLabels" toName="video"><Label value="Ball"/></Labels>
  <Video name="video" value="$video" frameRate="10"/>
  <VideoRectangle name="box" toName="video" smart="true"/>
</View>
"""


def cvat(image: np.ndarray, shapes: list[Any], states: list[Any]) -> dict[str, Any]:
    """Request of CVAT's server to a tracker; image [H, W, 3] uint8 RGB."""
    _, data = cv2.imencode(".png", image[..., ::-1])
    return {
        "image": base64.b64encode(data.tobytes()).decode(),
        "shapes": shapes,
        "states": states,
    }


def predict(config: str, data: dict[str, str], context: dict[str, Any] | None) -> dict[str, Any]:
    """Label Studio's POST /predict of one task."""
    return {
        "tasks": [
            {
                "id": 17, "data": data, "meta": {}, "created_at": "2026-01-05T10:00:00.000000Z",
                "updated_at": "2026-01-05T10:00:00.000000Z", "is_labeled": False, "overlap": 1,
                "inner_id": 1, "total_annotations": 0, "cancelled_annotations": 0,
                "total_predictions": 0, "project": 3, "annotations": [], "predictions": [],
            }
        ],
        "model_version": "vosengine",
        "project": "3.1767607200",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }  # fmt: skip


def marks(width: int, height: int) -> dict[str, Any]:
    """A rectangle, a point on the object, and one outside it, in an image of that size."""
    common = {"original_width": width, "original_height": height, "image_rotation": 0}
    box = {"x": 25.0, "y": 20.0, "width": 40.0, "height": 50.0, "rotation": 0}
    on = {"x": 45.0, "y": 45.0, "width": 0.6}
    beside = {"x": 5.0, "y": 90.0, "width": 0.6}
    label = {"keypointlabels": ["Ball"]}
    point = {"from_name": "tag2", "to_name": "image", "type": "keypointlabels", "origin": "manual"}
    return {
        "result": [
            {
                **common, "id": "Rz9oHDXIwG", "from_name": "tag3", "to_name": "image",
                "type": "rectanglelabels", "origin": "manual",
                "value": {**box, "rectanglelabels": ["Ball"]},
            },
            {**common, **point, "id": "hqudA4A3U4", "is_positive": True, "value": {**on, **label}},
            {
                **common, **point, "id": "b0tAXkOjV3", "is_positive": False,
                "value": {**beside, **label},
            },
        ]
    }  # fmt: skip


def video_box(frames: int, frame: int) -> dict[str, Any]:
    """A box that a person drew in a frame, counted from 1, of a video of 10 frames a second."""
    place = {"enabled": True, "rotation": 0, "frame": frame, "time": (frame - 1) / 10}
    box = {"x": 25.0, "y": 20.0, "width": 40.0, "height": 50.0}
    return {
        "result": [
            {
                "id": "kz4TTSmRZc", "from_name": "box", "to_name": "video",
                "type": "videorectangle", "origin": "manual",
                "value": {
                    "framesCount": frames, "duration": frames / 10, "sequence": [{**box, **place}],
                    "labels": ["Ball"],
                },
            }
        ]
    }  # fmt: skip
