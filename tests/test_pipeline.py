"""The real graph in miniature, run by Snakemake as a user would: whole, stale, broken, killed."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from conftest import TARGETS
from workflow import ENVIRONMENT, ROOT, Project, errors

from mirage_steps.files.records import read_metrics

OWN_MODEL = "results/mini/training/model.safetensors"


def test_table_has_every_row(finished):
    text = finished["fid.txt"].read_text()
    names = [
        "real-vs-real", "no-mv", "mv-bg-no-hag", "mv-bg-hag", "untrained",
        "real-vs-real-nobg", "mv-nobg-no-hag", "mv-nobg-hag",
    ]  # fmt: skip
    for name in names:
        assert re.search(rf"^{name} +12 ", text, flags=re.MULTILINE), text
    assert "stand-in" in text
    metrics = json.loads(finished["metrics.json"].read_text())
    assert [row["row"] for row in metrics["rows"]] == names


def test_every_output_has_log_and_provenance(finished):
    logs = {path.stem for path in finished["logs"].glob("*.log")}
    steps = {"dataset", "features", "foreground", "crops", "crop_features", "pose_space", "poses"}
    assert steps | {"pose_eval", "train", "real", "sheet", "fid", "views-no-mv"} <= logs
    for path in finished[""].rglob("*.run.json"):
        record = json.loads(path.read_text())
        assert record["packages"]["torch"] and "settings" in record and record["seconds"] >= 0
    folders = {path.parent.name for path in finished[""].rglob("*.run.json")}
    assert {"mini", "features", "foreground", "poses", "training", "no-mv", "sheet"} <= folders


def test_nothing_temporary_is_left(finished):
    # Snakemake marks folders that are outputs.
    own = ".snakemake_timestamp"
    assert not [path for path in finished[""].rglob(".*") if path.name != own]
    assert not finished["crop_features/tokens.h5"].exists()


def test_overview_names_pictures_that_exist(finished):
    text = finished["overview.txt"].read_text()
    assert text.startswith(finished["fid.txt"].read_text())
    pictures = text.partition("Pictures:\n")[2].split("\n")[:-1]
    assert len(pictures) == 15
    assert all((finished.folder / path.strip()).stat().st_size > 1000 for path in pictures)


def test_the_report_of_a_finished_run_has_every_part(finished):
    html = finished["report.html"].read_text()
    assert len(html) < 20e6 and "is not there yet" not in html and "cannot be shown" not in html
    assert html.count('class="turntable"') == 4  # two objects, two photos
    assert "Report: results/mini/report.html\n" in finished["overview.txt"].read_text()


def test_views_are_judged_with_floor_ceiling_and_intervals(finished):
    found = json.loads(finished["evidence/evidence.json"].read_text())
    assert (found["generated_objects"], found["photos"], found["real_images"]) == (2, 2, 15)
    assert found["photos_are"] == "objects that the model never saw"
    for name, chance in (("exact", 0.2), ("near", 0.6)):
        row = found["pose_control"][name]
        assert row["chance"] == chance and row["generated"]["n"] == 2
        assert 0 <= row["photos"]["low"] <= row["photos"]["high"] <= 1
    assert found["consistency"].keys() == {"color", "efficientnet-lite0"}
    assert found["truth"].keys() == {"psnr_db", "distance", "iou"}
    text = finished["overview.txt"].read_text()
    assert finished["evidence/evidence.txt"].read_text() in text and "stand-in-dinov2-cars" in text
    assert finished["ablation/ablation.txt"].read_text() in text


def test_the_ablation_varies_one_factor_at_a_time(finished):
    found = json.loads(finished["ablation/ablation.json"].read_text())
    settings = {name: row["settings"] for name, row in found["rows"].items()}
    assert settings == {
        "as configured": {},
        "own noise": {"shared_noise": False},
        "no attention": {"attention": "none"},
        "no attention, own noise": {"shared_noise": False, "attention": "none"},
        "encoder too": {"attention": "all"},
        "guided reference": {"reference": "guided"},
        "gamma 1": {"gamma": 1.0},
        "gamma 3": {"gamma": 3.0},
    }
    assert len(found["claims"]) == 6
    base = found["rows"]["as configured"]["less_first_row"]
    assert all(change["value"] == 0 for change in base.values())


def test_second_run_does_nothing(finished):
    assert "Nothing to be done" in finished.run("--", *TARGETS)


def test_a_start_remembers_hashes_and_names_only_some_of_many_unusable_photos(tmp_path):
    """All in one command would be longer than a system allows."""
    project = Project(tmp_path / "project")
    for number in range(250):
        (project.folder / f"my photos/{number:03d} of many notes.txt").write_text("no photo")
    shutil.rmtree(project.folder / "my photos/below")
    output = project.run("--dry-run", "--printshellcmds", "--", *TARGETS)
    assert output.count("099 of many notes.txt: ") == 2  # for the report and the overview
    assert output.count("and 150 more") == 2 and "100 of many notes.txt: " not in output
    kept = json.loads((project.folder / "results/.files.json").read_text())
    weights = [key for key in kept if key.startswith("sha256 ")]
    assert any(key.endswith("stand-in-dinov2-cars/model.safetensors") for key in weights)
    assert any(key.endswith("stand-in-dinov2-cars/config.json") for key in weights)


def test_gamma_reruns_only_what_depends_on_it(changed):
    changed.settings(guidance={"gamma": 2.0})
    assert changed.planned(*TARGETS) == {
        "sampling": 1,
        "views": 1,
        "masks": 1,
        "embed": 2,
        "sheet": 1,
        "contact_sheet": 1,
        "novel_views": 2,
        "fid": 1,
        "evidence": 1,
        "ablation": 1,
        "report": 1,
        "overview": 1,
    }


def test_an_edited_row_makes_the_table_stale(changed):
    """The declaration is code of this project, so the copy gets its own."""
    package = changed.folder / "mirage_steps"
    package.unlink()
    shutil.copytree(ROOT / "mirage_steps", package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / "evaluation_sets.py"
    path.write_text(path.read_text().replace("single images, without", "single images, free of"))
    environment = {**ENVIRONMENT, "PYTHONPATH": str(changed.folder)}
    assert changed.planned(*TARGETS, env=environment) == {"fid": 1, "report": 1, "overview": 1}


def test_k_leaves_features_alone(changed):
    changed.settings(poses={"k": 4})
    planned = changed.planned(*TARGETS)
    assert {"poses", "train", "views", "fid"} <= planned.keys()
    # What lies before the clustering stays as it is.
    assert not {"dataset", "features", "foreground", "crops", "pose_space"} & planned.keys()


def test_names_of_poses_make_pictures_and_nothing_else(changed):
    targets = (*TARGETS, "results/mini/sheet/reference-1.png")
    changed.run("--", targets[1])
    (changed.folder / "edits.csv").write_text("pose,action,value\n1,name,nose\n")
    changed.settings(poses={"edits": "edits.csv"})
    pictures = {
        "pose_names": 1, "contact_sheet": 1, "reference_contact_sheet": 1, "report": 1,
        "overview": 1,
    }  # fmt: skip
    assert changed.planned(*targets) == pictures
    changed.run("--", *targets)
    assert "nose" in changed["report.html"].read_text()
    assert changed.planned(*targets) == {}
    (changed.folder / "edits.csv").write_text("pose,action,value\n1,name,rear\n")
    assert changed.planned(*targets) == pictures
    (changed.folder / "edits.csv").write_text("pose,action,value\n1,merge,2\n")
    assert {"poses", "train", "views", "evidence"} <= changed.planned(*targets).keys()
    changed.settings(cameras={"front": 4})
    (line,) = errors(changed.run("--dry-run", "--", *targets, ok=False))
    assert line.startswith("error: datasets.mini.cameras.front 4: there are 4 poses, 0 to 3, after")


def test_weights_count_by_their_content(changed):
    """A clone gives them new times; a copy of the results may lack Snakemake's records."""
    weights = changed.folder / "weights"
    weights.unlink()
    shutil.copytree(ROOT / "weights", weights, copy_function=shutil.copy)
    assert changed.planned(*TARGETS) == {}
    with open(weights / "stand-in-sam-cars/model.safetensors", "ab") as file:
        file.write(b"0")
    later = {"fid": 1, "report": 1, "overview": 1}
    assert changed.planned(*TARGETS) == {"masks": 4, "embed": 4, **later}
    shutil.rmtree(changed.folder / ".snakemake")
    for photo in (changed.folder / "my photos").rglob("*.png"):
        os.utime(photo, (0, 0))
    assert changed.planned(*TARGETS) == {}


def test_hashes_of_the_code_do_not_depend_on_the_folder(changed):
    (changed.folder / "mirage_steps").unlink()  # as in a folder given by --directory
    assert changed.planned(*TARGETS) == {}


def test_a_model_whose_job_failed_at_once_comes_back_and_leaves_the_rest_valid(changed):
    """Snakemake deletes the outputs of a job before it starts or submits it."""
    (changed.folder / "fake").mkdir()
    fake = changed.folder / "fake/python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    model = changed["training/model.safetensors"]
    before = model.read_bytes()
    changed.settings(training={"seed": 1})
    changed.run("--", "results/mini/training/model.safetensors", ok=False, env=environment)
    assert not model.exists()
    changed.settings(training={"seed": 0})
    changed.run("--", "results/mini/training/model.safetensors")
    assert "resuming after step 4\n" in changed["logs/train.log"].read_text()
    assert model.read_bytes() == before
    assert changed.planned(*TARGETS) == {}


def test_labels_rerun_only_the_evaluation(changed):
    image = finished_image(changed)
    (changed.folder / "labels.csv").write_text(f"image,azimuth_deg\n{image},10\n")
    path = changed.folder / "mini.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"]["mini"]["labels"] = "labels.csv"
    path.write_text(yaml.safe_dump(config))
    assert changed.planned(*TARGETS) == {
        "pose_eval": 1, "turntables": 1, "evidence": 1, "ablation": 1, "report": 1, "overview": 1,
    }  # fmt: skip


def finished_image(project: Project) -> str:
    return project["manifest.csv"].read_text().splitlines()[1].split(",")[0]


def test_a_mesh_made_again_is_reported_and_cameras_made_again_are_exported(changed):
    targets = (*TARGETS, "results/mini/export/README.md")
    files = (changed["meshes/green.glb"], changed["cameras/cameras.json"])
    for path in files:
        path.parent.mkdir()
        path.write_text("one")
    output = changed.run("--", *targets)
    assert "cameras are not exported: results/mini/cameras/cameras.json: not readable" in output
    for path in files:
        path.write_text("two")
    assert changed.planned(*targets) == {"report": 1, "overview": 1, "export": 1}


def test_unknown_key_gets_a_hint(changed):
    changed.settings(guidance={"gama": 2.0})
    output = changed.run("--", TARGETS[0], ok=False)
    assert "datasets.mini.guidance.gama is not a key; did you mean 'gamma'?" in output
    assert "Traceback" not in output


def test_unknown_data_set_is_named(finished):
    output = finished.run("--", "results/nosuch/fid.txt", ok=False)
    assert re.search("No rule to produce.*results/nosuch/fid.txt", output), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("section", "key", "value", "target", "message"),
    [
        ("backbone", "model", "nowhere/at-all", "features/tokens.h5", "backbone.model nowhere/at"),
        ("masks", "sam", "nowhere.pth", "sets/real-a-nobg/images.h5", "masks.sam"),
        ("embed", "inception", "nowhere.pt", "sets/real-a/features.h5", "embed.inception"),
        ("fid", "samples", 21, "sets/real-a/images.h5", "set it to at most 20"),
        ("training", "pretrained", OWN_MODEL, "training/model.safetensors", "copy it"),
    ],
)
def test_missing_input_gets_one_line(changed, section, key, value, target, message):
    changed.settings(**{section: {key: value}})
    output = changed.run("--", f"results/mini/{target}", ok=False)
    found = set(errors(output))
    assert len(found) == 1 and message in found.pop(), output
    assert "Traceback" not in output


@pytest.mark.parametrize("sam, jobs", [("weights/stand-in-sam-cars", 4), ("none", 0)])
def test_without_sam_no_background_is_removed_and_the_overview_asks_for_none(tmp_path, sam, jobs):
    project = Project(tmp_path / "new")
    project.settings(masks={"sam": sam})
    output = project.run("--dry-run", "--printshellcmds", "--", "results/mini/overview.txt")
    assert len(set(re.findall(r"mirage_steps\.masks .*--out (\S+)", output))) == jobs
    assert ("mv-nobg-hag" in output) == bool(jobs)


def test_views_are_scored_while_training(finished):
    records = read_metrics(finished["training/checkpoints"])
    scored = [record for record in records if "near" in record]
    assert [record["step"] for record in scored] == [2, 4]
    assert all((record["objects"], record["views"]) == (2, 8) for record in scored)
    assert all(0 <= record["in_pose"] <= record["near"] <= 1 for record in scored)
    # The untrained network's output changes from step to step, and so do its views.
    assert scored[0]["kd"] != scored[1]["kd"] and min(one["kd"] for one in scored) > 0
    assert finished["training/checkpoints/loss.png"].exists()


@pytest.mark.slow
def test_killed_training_goes_on(changed):
    """SIGKILL takes Snakemake and the step at once; the next run resumes from the checkpoint."""
    project = changed
    shutil.rmtree(project["training"])
    project.settings(training={"iterations": 100000, "schedule": "constant"})
    process = project.start("--", "results/mini/training/model.safetensors")
    metrics = project["training/checkpoints/metrics.jsonl"]
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.1)
    for child in descendants(process.pid):
        os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()
    assert not project["training/model.safetensors"].exists()
    steps = metrics.read_text().count("\n")
    project.settings(training={"iterations": steps + 4})
    project.run("--unlock")
    output = project.run("--", "results/mini/training/model.safetensors")
    assert re.search(r"resuming after step [1-9]", output), output


def descendants(pid: int) -> list[int]:
    """All processes below one, deepest last."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


@pytest.mark.slow
def test_folder_of_bad_and_good_files(tmp_path):
    """Photos under names with spaces, quotes and unicode, between files that are no photos."""
    from PIL import Image

    from mirage_steps.demo.renderer.cars import DEMO_FAMILIES, render

    project = Project(tmp_path / "photos")
    photos = project.folder / "my 'photos' & more"
    (photos / "ünter; rm -rf").mkdir(parents=True)
    for number in range(10):
        image = Image.fromarray(render(3, number, DEMO_FAMILIES, 64).image)
        path = photos / "ünter; rm -rf" / f"{number}.png"
        image.convert("L" if number == 3 else "RGB").save(path)
    (photos / "empty.jpg").touch()
    (photos / "notes.txt").write_text("no image")
    good = (photos / "ünter; rm -rf" / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(good[: len(good) // 2])
    Image.new("L", (300, 300)).save(photos / "huge.png")
    project.settings(
        source={"kind": "folder", "path": str(photos), "max_pixels": 80_000}, poses={"k": 4}
    )
    project.run("--", "results/mini/poses/pose_eval.json")
    rejected = project["rejected.csv"].read_text()
    assert re.search("empty.jpg.*empty file", rejected)
    assert re.search("notes.txt.*not an image", rejected)
    assert re.search("cut.png", rejected)
    assert re.search("huge.png.*max_pixels", rejected)
    assert project["manifest.csv"].read_text().count("\n") == 11
    assert json.loads(project["poses/pose_eval.json"].read_text())["images"] == 0
