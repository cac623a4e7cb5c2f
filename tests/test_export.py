"""What is exported of a run is used like the run, on another machine too."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from workflow import ROOT

from mirage_steps import Run, export
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import sha256_of
from mirage_steps.files.cameras import CAMERAS, read_cameras
from mirage_steps.run import SHOWCASE


def test_photos_are_shown_as_by_the_run_itself(finished, tmp_path):
    out = tmp_path / "elsewhere"
    export.main(trained=finished[""], out=out, pack=tmp_path / "run.zip")
    shutil.move(out, tmp_path / "moved")  # names nothing of the run's folder
    own = Run.load(finished[""])
    backbone = ROOT / "weights/stand-in-dinov2-cars"
    other = Run.load(tmp_path / "moved", backbone=backbone)
    packed = Run.load(tmp_path / "run.zip", backbone=backbone)
    assert other.sampling == packed.sampling == own.sampling
    photo = finished["images/000003.png"]
    one, two = own.novel_views(photo), other.novel_views(photo)
    np.testing.assert_array_equal(packed.novel_views(photo).views, two.views)
    assert (one.pose, one.box, one.distance) == (two.pose, two.box, two.distance)
    difference = np.abs(np.subtract(one.views, two.views, dtype=np.int16))
    assert difference.mean() < 1  # of half precision alone


def test_the_weights_take_half_the_size_and_the_card_says_what_they_are(finished, tmp_path):
    export.main(trained=finished[""], out=tmp_path)
    weights = "training/model.safetensors"
    share = (tmp_path / weights).stat().st_size / finished[weights].stat().st_size
    assert 0.5 < share < 0.52
    card = (tmp_path / "README.md").read_text()
    trained = json.loads(finished["training/config.json"].read_text())
    assert f"Trained for {trained['iterations']} steps of 4 images on 40 crops" in card
    assert finished["evidence/evidence.txt"].read_text().strip() in card
    assert "Samples in 3 steps of `ddim` to timestep 0, guidance with gamma 1.5" in card
    assert "stand-in-dinov2-cars" in card and str(finished[""]) not in card


def test_neither_the_run_nor_a_page_is_overwritten(finished, tmp_path):
    weights = finished["training/model.safetensors"].read_bytes()
    with pytest.raises(UserError, match="is the run itself"):
        export.main(trained=finished[""], out=finished[""])
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="has a README.md that no export wrote"):
        export.main(trained=finished[""], out=tmp_path)
    assert finished["training/model.safetensors"].read_bytes() == weights
    assert (tmp_path / "README.md").read_text() == "mine"


def test_cameras_are_exported_where_the_run_has_them(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(SHOWCASE, run)
    poses = run / "poses/poses.csv"
    poses.write_text("image,pose,distance\na.png,0,0\n")
    cameras = json.loads((run / CAMERAS).read_text())
    (run / CAMERAS).write_text(json.dumps(cameras | {"found_in": sha256_of(poses)}))
    export.main(trained=run, out=tmp_path / "one")
    assert read_cameras(tmp_path / "one" / CAMERAS, range(12)) == read_cameras(
        run / CAMERAS, range(12)
    )
    assert "median error of their azimuths 2.0 degrees" in (tmp_path / "one/README.md").read_text()
    shutil.rmtree(run / "cameras")
    export.main(trained=run, out=tmp_path / "two")
    assert not (tmp_path / "two/cameras").exists()
    assert "ameras" not in (tmp_path / "two/README.md").read_text()


def test_cameras_of_other_poses_are_left_out_with_the_remedy(tmp_path, caplog):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(SHOWCASE, run)
    poses = run / "poses/poses.csv"
    poses.write_text("image,pose,distance\na.png,0,0\n")
    cameras = json.loads((run / CAMERAS).read_text())
    (run / CAMERAS).write_text(json.dumps(cameras | {"found_in": sha256_of(poses)}))
    export.main(trained=run, out=out)
    assert (out / CAMERAS).exists() and not caplog.messages
    poses.write_text("image,pose,distance\na.png,1,0\n")
    (out / "export.run.json").touch()  # as a command writes it
    export.main(trained=run, out=out)
    assert not (out / CAMERAS).exists(), "those of the first export, too"
    assert "ameras" not in (out / "README.md").read_text()
    (told,) = caplog.messages
    assert "the poses were changed since" in told and f"results/NAME/{CAMERAS}" in told


@pytest.mark.parametrize("log_every", [100, 1000, 5000])
def test_hours_of_a_training_do_not_depend_on_how_often_it_logs(tmp_path, log_every):
    """A second a step, for ten hours; every 1000 steps, samples and scores take 20 s."""
    lines = []
    for step in range(100, 36_001, 100):
        seconds = step + 20 * ((step - 1) // 1000)
        if step % log_every == 0:
            lines.append({"step": step, "loss": 1.0, "time": seconds})
        if step % 1000 == 0:
            lines.append({"step": step, "near": 0.5, "time": seconds + 20})
    folder = tmp_path / "training/checkpoints"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert float(export._hours(tmp_path)) == pytest.approx(10.1, abs=0.2)


def test_what_is_no_finished_run_is_refused(tmp_path):
    for folder, told in ((tmp_path / "no", "no such folder"), (tmp_path, "no such file")):
        with pytest.raises(UserError, match=told):
            export.main(trained=folder, out=tmp_path / "out")


def test_the_embedded_model_turns_a_photo_without_any_run():
    result = Run.load().novel_views(ROOT / "examples/cars/green.png")
    assert not result.warnings and len(result.views) == 12
    assert result.reconstruction_psnr_db > 30
    assert np.asarray(Image.fromarray(result.views[0])).std() > 10
