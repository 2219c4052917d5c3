"""Screenshots of the page for the README, with a procedural clip.

python tests/support/page_pictures.py    writes docs/pictures/page-light.webp and page-dark.webp
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from page_browser import Browser, Server
from PIL import Image

from vosengine.training.synthetic import ClipConfig, iterate_clip
from vosengine.video import VideoWriter, write_labels

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
SEED, FRAMES, HEIGHT, WIDTH = 4, 20, 480, 854
MOST_BYTES = 200_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip, mask, out = (Path(folder, name) for name in ("scene.mp4", "mask.png", "out"))
        config = replace(ClipConfig.demo(), frames=FRAMES, height=HEIGHT, width=WIDTH)
        with VideoWriter(clip, 24.0) as video:
            for index, (frame, labels) in enumerate(iterate_clip(config, SEED)):
                video.write(frame)
                if index == 0:
                    write_labels(mask, labels)
        with closing(Server(Path(folder, "states"))) as server:
            environment = {"PAGE_URL": server.url, "PAGE_CLIP": str(clip), "PAGE_MASK": str(mask)}
            with closing(Browser({**environment, "PAGE_OUT": str(out)})) as browser:
                browser.play("pictures")
        PICTURES.mkdir(exist_ok=True)
        for name in ("page-light", "page-dark"):
            file = PICTURES / f"{name}.webp"
            Image.open(out / f"{name}.png").convert("RGB").save(file, quality=90, method=6)
            size = file.stat().st_size
            assert size < MOST_BYTES, f"{file.name}: {size} bytes"


if __name__ == "__main__":
    main()
