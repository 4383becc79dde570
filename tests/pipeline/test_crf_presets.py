"""The presets have the numbers of their sources, and KEY=VALUE means the field of that name."""

import dataclasses

import pytest

from pipeline.crf.energy import CrfSpec
from pipeline.crf.presets import DEFAULT_PRESET, PRESETS, find_preset, parse_changes
from pipeline.errors import SpecError


@pytest.mark.parametrize(
    ("name", "w1", "theta_alpha", "theta_beta", "w2", "theta_gamma"),
    [
        ("kazuto", 4, 67, 3, 3, 1),
        ("v1", 4, 49, 5, 3, 3),
        ("v1-default", 10, 60, 20, 3, 3),
        ("v2", 4, 67, 3, 3, 3),
    ],
)
def test_a_preset_has_the_numbers_of_its_source(name, w1, theta_alpha, theta_beta, w2, theta_gamma):
    crf = find_preset(name).crf
    assert (crf.w_appearance, crf.theta_alpha, crf.theta_beta) == (w1, theta_alpha, theta_beta)
    assert (crf.w_smoothness, crf.theta_gamma, crf.n_steps) == (w2, theta_gamma, 10)


def test_presets_say_where_they_come_from_and_change_nothing_but_the_energy():
    energy = {"w_appearance", "theta_alpha", "theta_beta", "w_smoothness", "theta_gamma", "n_steps"}
    others = [field.name for field in dataclasses.fields(CrfSpec) if field.name not in energy]
    for one in PRESETS.values():
        assert len(one.source) > 20
        assert all(getattr(one.crf, name) == getattr(CrfSpec(), name) for name in others)


def test_v2_lies_in_what_its_paper_searched():
    crf = PRESETS["v2"].crf
    assert 3 <= crf.w_appearance <= 6
    assert 30 <= crf.theta_alpha <= 100
    assert 3 <= crf.theta_beta <= 6


def test_the_default_is_that_of_the_spec():
    assert PRESETS[DEFAULT_PRESET].crf == CrfSpec()


@pytest.mark.parametrize(("name", "hint"), [("kazuo", "did you mean 'kazuto'"), ("zzz", "known are: kazuto, v1, v1-default, v2")])
def test_an_unknown_preset_names_those_that_there_are(name, hint):
    with pytest.raises(SpecError, match=f"preset '{name}' was asked for; {hint}.*'model'"):
        find_preset(name)


# --- KEY=VALUE

MATRIX = ((0.0, 2.0), (2.0, 0.0))


def parse(*pairs):
    return parse_changes(pairs, read_matrix=lambda path: MATRIX if path == "costs.csv" else None)


VALUES = [
    ("theta_alpha=50", 50.0),
    ("theta_beta = 3.5", 3.5),
    ("theta_gamma=1e1", 10.0),
    ("w_appearance=0", 0.0),
    ("w_smoothness=.5", 0.5),
    ("n_steps=5", 5),
    ("tile_px=512", 512),
    ("stop_below=0.01", 0.01),
    ("absent_below=0.02", 0.02),
    ("skip_above=0.99", 0.99),
    ("guide_bands=3,1", (3, 1)),
    ("compatibility=costs.csv", MATRIX),
]


@pytest.mark.parametrize(("pair", "value"), VALUES, ids=[pair for pair, _ in VALUES])
def test_a_pair_is_a_value_of_its_field(pair, value):
    key = pair.split("=")[0].strip()
    found = parse(pair)
    assert found == {key: value}
    assert type(found[key]) is type(value)
    assert getattr(dataclasses.replace(CrfSpec(), **found), key) == value


def test_every_field_but_the_backend_can_be_given():
    assert {pair.split("=")[0].strip() for pair, _ in VALUES} | {"backend"} == {
        field.name for field in dataclasses.fields(CrfSpec)
    }


def test_all_bands_can_be_asked_for():
    assert parse("guide_bands=all") == {"guide_bands": None}


def test_several_pairs_are_all_taken():
    assert parse("n_steps=5", "theta_alpha=9") == {"n_steps": 5, "theta_alpha": 9.0}
    assert parse() == {}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        pytest.param(["theta_alfa=3"], "no setting 'theta_alfa'; did you mean 'theta_alpha'", id="unknown"),
        pytest.param(["zzz=3"], "no setting 'zzz'; known are: absent_below, compatibility", id="unlike any"),
        pytest.param(["theta_alpha"], "'theta_alpha' was given; write it as KEY=VALUE", id="no value"),
        pytest.param(["theta_alpha="], "write it as KEY=VALUE", id="empty value"),
        pytest.param(["theta_alpha=wide"], "theta_alpha=wide was given; expected a number", id="text"),
        pytest.param(["n_steps=2.5"], "n_steps=2.5 was given; expected a whole number", id="fraction"),
        pytest.param(["guide_bands=red"], "guide_bands=red was given; expected numbers with commas", id="bands"),
        pytest.param(["n_steps=2", "n_steps=3"], "n_steps was given twice", id="twice"),
        pytest.param(["backend=torch"], "--crf-backend torch", id="backend"),
    ],
)
def test_pairs_that_mean_nothing_are_refused(pairs, message):
    with pytest.raises(SpecError, match=message):
        parse(*pairs)
