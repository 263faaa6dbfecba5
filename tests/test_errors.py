from __future__ import annotations

import sys
import traceback

import pytest

from sdcpp_py import errors


def test_tree() -> None:
    for name in ("ArgumentError", "ModelError", "GenerationError", "OutputError", "BackendError", "ClosedError"):
        assert issubclass(getattr(errors, name), errors.SdcppError)
    assert issubclass(errors.ArgumentError, ValueError)
    assert issubclass(errors.OutputError, OSError)
    assert issubclass(errors.CancelledError, errors.GenerationError)
    assert issubclass(errors.DeviceMemoryError, errors.GenerationError)


def test_docstring_draws_every_class() -> None:
    assert errors.__doc__ is not None
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")]
    assert [name for name in classes if name not in errors.__doc__] == []


def test_engine_lines_are_no_part_of_the_message() -> None:
    error = errors.ModelError("cannot load; try again", ["tensor a is missing", "giving up"])
    assert str(error) == "cannot load; try again"
    assert error.engine_log == ("tensor a is missing", "giving up")
    if sys.version_info >= (3, 11):
        assert "engine: giving up" in "".join(traceback.format_exception(error))
    with pytest.raises(errors.SdcppError, match="cannot load"):
        raise error


def test_a_message_is_one_line_whatever_names_it_holds() -> None:
    error = errors.ModelError("model: a\nb\x1b[31m\u202ec does not exist")
    assert str(error) == r"model: a\nb\x1b[31m\u202ec does not exist"
    assert len(str(errors.ModelError(f"model: {'x' * 100_000} does not exist"))) < 3000
