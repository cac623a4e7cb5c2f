"""The table of poses of real photos, on a few rendered ones."""

import argparse
import csv
import sys
from pathlib import Path

from PIL import Image

from mirage_steps.demo.renderer.cars import DEMO_FAMILIES, render

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import photos


def test_each_kind_of_maps_is_clustered_and_scored_by_the_labels(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    with open(tmp_path / "labels.csv", "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("image", "azimuth_deg"))
        for number in range(24):
            car = render(1, number, DEMO_FAMILIES, 64)
            Image.fromarray(car.image).save(tmp_path / f"photos/{number}.png")
            rows.writerow((f"{number}.png", car.azimuth_deg))
    words = {"photos": tmp_path / "photos", "labels": tmp_path / "labels.csv", "boxes": None}
    words |= {"backbone": "efficientnet-lite0", "resolution": 64, "k": [4], "seeds": 2, "hog": True}
    photos.main(argparse.Namespace(**words), tmp_path / "out")
    head, _, *table = capsys.readouterr().out.splitlines()
    assert head.count("|") == 5 and len(table) == 2 * (1 + len(photos.SPACES))
    degrees = [float(row.split("|")[3].split()[0]) for row in table]
    assert 0 < min(degrees) and max(degrees) < 90


def test_cells_are_the_median_of_the_seeds_with_the_range():
    found = [
        {"median_error_deg": error, "share_within_30_deg": share}
        for error, share in ((9.0, 0.5), (7.04, 0.75), (8.0, 0.6))
    ]
    assert photos.cells(found) == ["8.0 (7.0–9.0)", "60 (50–75)"]
    assert photos.cells(found[:1]) == ["9.0 (9.0–9.0)", "50 (50–50)"]
