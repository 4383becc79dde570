"""Errors cross process borders."""

import pickle

import pytest

from pipeline import errors
from pipeline.errors import PipelineError


def every(kind):
    return [kind, *(deeper for sub in kind.__subclasses__() for deeper in every(sub))]


@pytest.mark.parametrize("kind", every(PipelineError))
def test_every_error_pickles_with_its_message(kind):
    message = "block (3, 4) was asked for; the scene has 2 x 2"
    back = pickle.loads(pickle.dumps(kind(message)))
    assert type(back) is kind
    assert str(back) == message


@pytest.mark.parametrize("kind", [kind for kind in every(PipelineError) if kind.__module__ == errors.__name__])
def test_every_error_says_who_has_to_act(kind):
    assert kind.__doc__
    assert kind.__doc__.strip().endswith(".")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.SpecError, ValueError),
        (errors.SourceError, OSError),
        (errors.MissingDependencyError, ImportError),
        (errors.UnknownModelError, LookupError),
    ],
)
def test_an_error_is_also_what_a_caller_of_any_library_would_catch(kind, builtin):
    assert issubclass(kind, builtin)
    assert issubclass(kind, PipelineError)
