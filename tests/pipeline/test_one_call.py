"""Operations that are traced to be one call: the same bytes, or the operations themselves."""

import pytest
import torch

from pipeline.engine.device_memory import is_about_memory
from pipeline.engine.one_call import one_call


def three_operations(one, other):
    return (one + other).mul_(3).sin_()


def test_what_is_traced_gives_the_same_bytes_and_is_called_no_more(caplog):
    calls = []

    def work(*given):
        calls.append(1)
        return three_operations(*given)

    found = one_call("this", work, torch.zeros(5), torch.zeros(5))
    n_calls = len(calls)
    for seed in range(4):
        one, other = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(found(one, other), three_operations(one, other))
    assert len(calls) == n_calls
    assert not caplog.text


def test_what_cannot_be_traced_is_called_as_it_is(monkeypatch, caplog):
    def trace(*_given, **_more):
        raise RuntimeError("not this")

    monkeypatch.setattr(torch.jit, "trace", trace)
    assert one_call("this", three_operations, torch.zeros(5), torch.zeros(5)) is three_operations
    assert "this could not be traced" in caplog.text
    assert "not this" in caplog.text


def test_what_gives_something_else_is_called_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr(torch.jit, "trace", lambda *_given, **_more: lambda one, _other: one + 1)
    assert one_call("this", three_operations, torch.zeros(5), torch.zeros(5)) is three_operations
    assert "something else when traced" in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no"), True),
        (RuntimeError("in the interpreter: CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("an illegal memory access was encountered"), False),
    ],
)
def test_errors_about_memory_are_known_by_kind_or_text(error, expected):
    assert is_about_memory(error) == expected


def test_a_lack_of_memory_while_tracing_is_told(monkeypatch):
    def trace(*_given, **_more):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(torch.jit, "trace", trace)
    with pytest.raises(RuntimeError, match="out of memory"):
        one_call("this", three_operations, torch.zeros(5), torch.zeros(5))
