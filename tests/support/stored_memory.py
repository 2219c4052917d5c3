"""Contents of a memory for one object, for every storage layout."""

from __future__ import annotations

import torch

from vosengine.memory import Stored


def positions(stored: Stored, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys [N, Ck] and values [N, Cv] of a group, up to its length."""
    keys, values = stored.keys, stored.values
    if stored.pages is None:
        keys, values = keys[group], values[group]
    else:
        pages = stored.pages[group].long()
        keys, values = keys[pages].flatten(0, 1), values[pages].flatten(0, 1)
    used = None if stored.length is None else int(stored.length[group])
    return keys[:used], values[:used]
