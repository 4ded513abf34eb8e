"""`hilum models`: the list, and what is not one."""

import json

import pytest
from _encoders import file_of
from click.testing import CliRunner

from hilum.cli import run
from hilum.cli.models import models
from hilum.io.encoder_file import save_encoder
from hilum.io.weights import preset_names


def listed(*arguments):
    done = CliRunner().invoke(models, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)["models"]


def test_presets_what_ships_and_folders_are_listed_with_their_size(tmp_path):
    file = file_of("3d")
    for name in ("a", "b"):
        save_encoder(tmp_path / name, file)
    (tmp_path / "note").mkdir()
    rows = listed(tmp_path, tmp_path / "b")
    presets = {row["name"]: row for row in rows if row["what"] == "preset"}
    assert sorted(presets) == preset_names()
    assert presets["flexict-base"]["parameters"] == 143_999_424 and presets["flexict-base"]["licence"] is None
    shipped = next(row for row in rows if row["what"] == "reader" and row["name"] == "phantom-small")
    assert shipped["parameters"] == 3_721_252 and shipped["kind"] == "ynet" and shipped["synthetic"]
    assert shipped["licence"] == "Apache-2.0" and "synthetic" in shipped["trained_on"]
    encoders = [row for row in rows if row["what"] == "encoder"]
    nano = next(row for row in encoders if row["name"] == "radfinder-nano")
    assert nano["parameters"] == 878_458 and nano["kind"] == "3d-joint" and nano["synthetic"]
    mine = [row for row in encoders if row["folder"]]
    assert [row["folder"] for row in mine] == [str(tmp_path / n) for n in ("a", "b", "b")]
    assert {row["parameters"] for row in mine} == {sum(a.size for a in file.tensors.values())}
    assert {(row["kind"], row["trained_on"]) for row in mine} == {("3d", file.card["trained_on"])}


def test_the_table_says_synthetic():
    done = CliRunner().invoke(models, [])
    assert done.exit_code == 0
    assert "143,999,424" in done.output and "SYNTHETIC" in done.output and "no weights" in done.output


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_a_model_is_a_usage_error(name, tmp_path, capsys):
    assert run(["models", str(tmp_path / name)]) == 2
    assert "MODEL_UNKNOWN" in capsys.readouterr().err


def test_a_folder_that_is_damaged_is_refused(tmp_path, capsys):
    save_encoder(tmp_path / "a", file_of("3d"))
    weights = tmp_path / "a/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert run(["models", str(tmp_path)]) == 3
    assert "WEIGHTS_TRUNCATED" in capsys.readouterr().err
