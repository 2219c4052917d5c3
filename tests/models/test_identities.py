"""Whether target-aware U-VOS keeps identities where objects cross, hide and leave."""

from __future__ import annotations

import numpy as np
from conftest import make, to_the_end
from exact_discovery import ExactDiscovery, identities

from vosengine.training.synthetic import ClipConfig, make_clip


def test_identities_on_ten_clips_with_crossings_and_occlusion() -> None:
    """Exact discovery, fixed random features. Counts are printed (pytest -s)."""
    config = ClipConfig(
        frames=10,
        height=144,
        width=240,
        objects=(3, 3),
        size=(0.05, 0.15),
        distractors=(0, 1),
        occluders=(1, 2),
        leaving=0.3,
    )
    changes = {
        "refiner": "none",
        "tracker_size": 320,
        "tracker_width": 32,
        "target_channels": 32,
        "samples": 20,
    }
    results = []
    for seed in range(10):
        clip = make_clip(config, seed)
        source = ExactDiscovery(clip.masks)
        segmenter = make("target_aware", changes=changes, proposals=source)
        kept = identities(to_the_end(segmenter, clip.frames), clip.masks)
        results.append(kept)
        print(
            f"clip {seed}: {kept.switches} switches, {kept.fragments} fragments, "
            f"{len(kept.overlaps)} of {kept.shown} found, mean IoU {np.mean(kept.overlaps):.3f}"
        )
    overlaps = [value for kept in results for value in kept.overlaps]
    visible = sum(kept.shown for kept in results)
    print(
        f"all: {sum(k.switches for k in results)} switches, {sum(k.fragments for k in results)} "
        f"fragments, {len(overlaps)} of {visible} found, mean IoU {np.mean(overlaps):.3f}"
    )
    assert np.mean(overlaps) > 0.85
    assert len(overlaps) > 0.8 * visible
