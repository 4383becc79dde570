"""Which CRF is meant: presets, the model's own, changes one by one, matrices from files."""

import dataclasses

import pytest
from factories import tiny_model_spec

from pipeline.crf.energy import CrfSpec
from pipeline.crf.presets import PRESETS
from pipeline.errors import SourceError, SpecError
from workflows.crf_request import CrfRequest, choose, parse_request, read_matrix

MODEL = tiny_model_spec()
OWN = CrfSpec(theta_alpha=20, theta_beta=8, stop_below=0.01, backend="torch")
WITH_CRF = dataclasses.replace(MODEL, crf=OWN)


@pytest.mark.parametrize(
    ("model", "request_", "crf", "origin"),
    [
        pytest.param(MODEL, CrfRequest(), PRESETS["kazuto"].crf, "preset kazuto", id="default"),
        pytest.param(WITH_CRF, CrfRequest(backend="torch"), OWN, "the model's own", id="default of a model with one"),
        pytest.param(WITH_CRF, CrfRequest(preset="model", backend="torch"), OWN, "the model's own", id="model"),
        pytest.param(WITH_CRF, CrfRequest(preset="v1"), PRESETS["v1"].crf, "preset v1", id="named"),
        pytest.param(WITH_CRF, CrfRequest(), dataclasses.replace(OWN, backend="cpu"), "the model's own", id="other backend"),
        pytest.param(
            WITH_CRF,
            CrfRequest(changes={"theta_beta": 5.0}),
            dataclasses.replace(OWN, backend="cpu", theta_beta=5),
            "the model's own, with other theta_beta",
            id="changed",
        ),
        pytest.param(WITH_CRF, CrfSpec(n_steps=2), CrfSpec(n_steps=2), "given value by value", id="values"),
    ],
)
def test_the_crf_that_is_meant(model, request_, crf, origin):
    assert choose(request_, model) == (crf, origin)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CrfRequest(preset="model"), "the model tiny brings no CRF: name one of kazuto, v1, v1-default, v2"),
        (CrfRequest(preset="v9"), "preset 'v9'"),
        (CrfRequest(changes={"theta_alpha": -1.0}), "theta_alpha = -1.0"),
        (CrfRequest(changes={"compatibility": ((0.0,),)}), "compatibility of 1 classes was given; the model has 3"),
        (CrfSpec(guide_bands=(4,)), "the model has 3 band"),
    ],
    ids=["no own", "unknown", "range", "matrix", "bands"],
)
def test_what_cannot_be_meant_is_refused(request_, message):
    with pytest.raises(SpecError, match=message):
        choose(request_, MODEL)


def test_a_models_early_stop_must_be_given_up_for_pydensecrf():
    with pytest.raises(SpecError, match=r"stop_below = 0.01 .*pydensecrf.*give 0"):
        choose(CrfRequest(backend="pydensecrf"), WITH_CRF)
    assert choose(CrfRequest(backend="pydensecrf", changes={"stop_below": 0.0}), WITH_CRF)[0].backend == "pydensecrf"


def test_options_become_a_request(tmp_path):
    costs = tmp_path / "costs.csv"
    costs.write_text("0, 1\n1, 0\n")
    found = parse_request([f"compatibility={costs}", "n_steps=4"], preset="v1", backend="auto", device="cpu")
    assert found == CrfRequest(preset="v1", changes={"compatibility": ((0.0, 1.0), (1.0, 0.0)), "n_steps": 4}, backend="cpu")
    assert parse_request([], backend="torch", device="cpu") == CrfRequest(backend="torch")
    assert parse_request([], preset="model", device="cpu").preset == "model"
    with pytest.raises(SpecError, match="did you mean 'kazuto'"):
        parse_request([], preset="kazutto", device="cpu")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "0,1.5\n1.5,0\n"), ("b.CSV", "0, 1.5\n\n1.5, 0"), ("c.json", "[[0, 1.5], [1.5, 0.0]]")],
    ids=["csv", "csv with blanks", "json"],
)
def test_a_matrix_is_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_matrix(str(tmp_path / name)) == ((0.0, 1.5), (1.5, 0.0))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "0,x\n1,0\n"), ("b.json", "[[0, 1]"), ("c.json", "7"), ("d.json", '{"a": 1}'), ("e.csv", "0,,1\n")],
    ids=["word", "half", "number", "object", "gap"],
)
def test_what_is_no_matrix_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=f"{name} is no matrix .*a row for each class"):
        read_matrix(str(tmp_path / name))


def test_other_files_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"costs.txt was given; expected a .csv or .json file"):
        read_matrix("costs.txt")
    with pytest.raises(SourceError, match=r"nothing.csv cannot be read \(No such file"):
        read_matrix(str(tmp_path / "nothing.csv"))
