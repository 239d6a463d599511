"""Records of regions: what is packed comes back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from owl_swin.index.record import TEXTS, pack, unpack
from owl_swin.index.store import Regions

KEY = st.text("0123456789abcdef", min_size=1, max_size=32)
PATH = st.text(st.characters(exclude_categories=("Cs",)))
WHOLE = st.integers(0, 2**31 - 1)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.tuples(KEY, KEY, PATH), max_size=5),
    whole=WHOLE,
    modified=st.floats(allow_nan=False),
    boxes=arrays.arrays(np.float32, (5, 4), elements=st.floats(width=32, allow_nan=False)),
)
def test_what_is_packed_comes_back(texts, whole, modified, boxes):
    n = len(texts)
    columns = {name: np.array([text[i] for text in texts], object) for i, name in enumerate(TEXTS)}
    regions = Regions(
        **columns,
        **{name: np.full(n, whole, np.int32) for name in ("number", "width", "height")},
        modified=np.full(n, modified),
        boxes=boxes[:n],
        **{name: np.arange(n, dtype=np.float32) / 7 for name in ("objectness", "shift", "scale")},
        embeds=np.zeros((n, 2), np.float32),
    )
    back = unpack(pack(regions))
    assert set(back) == {name for name in Regions.__slots__ if name != "embeds"}
    for name, column in back.items():
        assert column.tolist() == getattr(regions, name).tolist(), name
