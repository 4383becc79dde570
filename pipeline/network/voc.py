"""Names and colours of the classes of PASCAL VOC 2012, which most public DeepLabs are trained on."""

from __future__ import annotations

from pipeline.network.spec import ClassSpec

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
"""Class 0 to 20."""


def voc_color(index: int) -> str:
    """Return the colour of class ``index`` (0 to 255) in VOC's colour map, ``#rrggbb``: the bits of the index, spread over three channels.

    Examples
    --------
    >>> voc_color(1), voc_color(15)
    ('#800000', '#c08080')
    """
    rgb = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            rgb[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return f"#{rgb[0]:02x}{rgb[1]:02x}{rgb[2]:02x}"


def voc_classes() -> tuple[ClassSpec, ...]:
    """Return the 21 classes."""
    return tuple(ClassSpec(name=name, color=voc_color(index)) for index, name in enumerate(VOC_NAMES))
