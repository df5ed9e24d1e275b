"""Write tests/golden/canny.npz, edges that OpenCV finds: ``python -m tests.parity.canny_record``.

It needs the package opencv-python-headless, which nothing else here does.
"""

from pathlib import Path

import numpy as np
from scipy import ndimage

OUT = Path(__file__).parents[1] / "golden" / "canny.npz"
THRESHOLDS = ((100, 200), (10, 30))  # of OpenCV: 8 * 255 times ours


def make_pictures() -> np.ndarray:
    """Colour pictures (4, 48, 40, 3) uint8, from noise to slow changes."""
    rng = np.random.default_rng(0)
    pictures = []
    for spread in (0, 1, 2, 4):
        values = ndimage.gaussian_filter(rng.normal(size=(48, 40, 3)), (spread, spread, 0))
        values = (values - values.min()) / np.ptp(values)
        pictures.append(np.round(255 * values).astype(np.uint8))
    return np.stack(pictures)


def main() -> None:
    import cv2

    pictures, out = make_pictures(), {}
    for low, high in THRESHOLDS:
        for norm in ("l1", "l2"):
            found = [cv2.Canny(p, low, high, L2gradient=norm == "l2") > 0 for p in pictures]
            out[f"{norm}-{low}-{high}"] = np.stack(found)
    np.savez_compressed(OUT, pictures=pictures, **out)


if __name__ == "__main__":
    main()
