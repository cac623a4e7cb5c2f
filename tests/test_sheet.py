"""Generated objects in all poses, with random and with chosen references."""

import h5py
import numpy as np
import pytest
import torch
from test_settings import _config, _refusal

from mirage_steps import settings, sheet, views
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_json
from mirage_steps.method.diffusion import SOLVERS
from mirage_steps.method.unet import build, preset
from mirage_steps.networks.diffusion_model import save_model
from mirage_steps.run import generated_object
from mirage_steps.settings import load

K = 6
VIEWS = settings.Views(steps=2, batch_size=8, precision="float32")
MEANS = [350.0, 52.0, 95.0, None, 181.0, 300.0]


@pytest.fixture(scope="module")
def model():
    """A network whose zero-initialized layers predict something."""
    torch.manual_seed(1)
    network = build(preset("small", 32, K, 0.0), 0)
    for parameter in network.requires_grad_(False).parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return network.eval()


@pytest.fixture
def arguments(model, tmp_path) -> dict:
    save_model(tmp_path / "training", model, {"seed": 0})
    poses = [{"pose": pose, "mean_azimuth_deg": mean} for pose, mean in enumerate(MEANS)]
    write_json(tmp_path / "pose_eval.json", {"images": 9, "poses": poses})
    return {
        "model": tmp_path / "training/model.safetensors",
        "scores": tmp_path / "pose_eval.json",
        "out": tmp_path / "sheet",
        "views": VIEWS,
        "judged_objects": 2,
        "device": "cpu",
    }


def test_objects_keep_their_noise_and_their_own_reference(model):
    """The same object, whichever reference: that of before where it is chosen."""
    images, poses, drawn = generated_object(model, 1, 7, VIEWS, settings.Guidance())
    again = generated_object(model, 1, 7, VIEWS, settings.Guidance(), drawn)
    np.testing.assert_array_equal(again[0], images)
    other = generated_object(model, 1, 7, VIEWS, settings.Guidance(), (drawn + 1) % K)
    assert other[1:] == (poses, (drawn + 1) % K)


@pytest.mark.parametrize(
    "reference, column",
    [("3", 3), ("front", 0), ("half-front", 1), ("side", 2), ("rear", 4), ("10deg", 0),
     ("half-back", 2), ("290.5deg", 5)],
)  # fmt: skip
def test_a_reference_is_a_pose_or_the_nearest_to_an_azimuth(arguments, model, reference, column):
    assert sheet._columns(reference, model.config, arguments["scores"]) == [column]


def test_sheets_of_references_leave_the_default_one_alone(arguments):
    assert sheet.main(**arguments, sheet=settings.Sheet(objects=2)) == ["sheet"]
    out = arguments["out"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"objects.h5"}
    chosen = settings.Sheet(objects=2, references=[3, "side"])
    assert sheet.main(**arguments, sheet=chosen) == ["reference-3", "reference-side"]
    assert {name: (out / name).read_bytes() for name in before} == before
    for name, column, told in (("3", 3, "gamma = 1.5"), ("side", 2, "reference side: pose 2")):
        with h5py.File(out / f"reference-{name}.h5") as file:
            assert file["images"].shape == (2, K, 32, 32, 3)
            assert file["reference"][:].tolist() == [column] * 2
            assert file.attrs["title"].decode().endswith(told)
    with h5py.File(out / "objects.h5") as file:
        assert file["reference"].shape == (2,) and file["pose"][:].tolist() == [[*range(K)]] * 2


def test_references_that_are_not_there_are_one_line(arguments):
    def refused(*references: str) -> str:
        with pytest.raises(UserError) as error:
            sheet.main(**arguments, sheet=settings.Sheet(references=references))
        assert not arguments["out"].exists()
        return str(error.value)

    assert refused("1", "6") == "sheet.references 6: there are 6 poses, 0 to 5"
    write_json(arguments["scores"], {"images": 0, "note": "no true azimuth is known"})
    told = "sheet.references side: no true azimuths of the poses are known (labels); give the "
    assert refused("1", "side") == f"{told}number of a pose, 0 to 5"


@pytest.mark.parametrize("wrong", ["sideways", -1, 1.5, True, "400 deg", "../x", ["front", "x"]])
def test_references_are_checked_before_a_run(wrong):
    assert "datasets.demo.sheet.references" in _refusal(_config(sheet={"references": wrong}))


def test_references_are_given_alone_or_in_a_list():
    def given(value: object) -> tuple[str, ...]:
        return load(_config(sheet={"references": value})).datasets["demo"].sheet.references

    assert given(3) == ("3",) and given(["front", 3, "120deg"]) == ("front", "3", "120deg")
    told = _refusal(_config(sheet={"references": [12]}, poses={"k": 12}))
    assert "datasets.demo.sheet.references 12: there are 12 poses, 0 to 11" in told


@pytest.mark.parametrize(
    "changes", [[{"solver": solver} for solver in SOLVERS], [{}, {"last_timestep": 300}]]
)
def test_sheets_and_sets_follow_the_solver_and_its_last_timestep(model, changes):
    """All that a data set shows is sampled alike."""
    images, even, cpu = [], np.full(K, 1 / K), torch.device("cpu")
    for change in changes:
        chosen = VIEWS.model_copy(update={"steps": 3, **change})
        single = next(views._single(model, even, range(2), chosen, cpu))
        several = next(views._multi_view(model, even, [0], 1, chosen, settings.Guidance(), cpu))
        sheet_row = generated_object(model, 0, 0, chosen, settings.Guidance())
        images.append(np.concatenate([single[0], several[0], sheet_row[0]]))
    assert len(images[0]) == 2 + views.NOVEL_VIEWS + K
    assert all((one != other).any() for one, other in zip(*images, strict=True))
