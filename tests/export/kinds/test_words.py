"""Messages call what a family takes by its name: a family of images has no texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matexport.errors import RequestError
from matexport.export.profiles import _find_point_ranges
from matexport.io.jobs import check_calibration
from matexport.io.texts import MIN_CALIBRATION_IMAGES, MIN_CALIBRATION_TEXTS
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision


@pytest.mark.parametrize("noun", ["text", "image"])
def test_a_coordinate_without_a_range(noun: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    vectors[:, 2] = 0.5
    words = rf"coordinate 2 of L01-D004 has one value for all of the 40 calibration {noun}s, .* Give other {noun}s in"
    with pytest.raises(RequestError, match=words):
        _find_point_ranges(Point(1, 4), vectors, noun)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "text",
            rf'measured on your texts: give \[calibration\] file = "texts.txt", at least {MIN_CALIBRATION_TEXTS} of',
        ),
        (
            "image",
            rf'measured on your images: give \[calibration\] file = "pictures/", .* least {MIN_CALIBRATION_IMAGES} of',
        ),
        ("franca", "measured on your images"),
    ],
)
def test_ranges_without_anything_to_measure_them_on(kind: str, words: str) -> None:
    job = ExportJob(
        ParentSource("x", kind=kind),
        (Point(1, 4),),
        precisions=(Precision.FP32, Precision.INT8_STATIC),
        encodings=(Encoding.FLOAT32, Encoding.INT8),
    )
    with pytest.raises(RequestError, match=words) as caught:
        check_calibration(job)
    assert "the precision int8-static and the encoding int8 need ranges" in str(caught.value)
    check_calibration(ExportJob(ParentSource("x", kind=kind), (Point(1, 4),), calibration=Path("there")))
