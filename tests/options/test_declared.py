"""What holds for every declared option, whatever it is."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdcpp_py
from sdcpp_py import ArgumentError, engine
from sdcpp_py.modes import CONVERT, DRAWING, FILMING, LOADING, TXT2IMG, UPSCALE, UPSCALER
from sdcpp_py.options import REQUIRED, Group, Option, declared
from sdcpp_py.options.group import Grouped
from sdcpp_py.options.groups import SkipLayerGuidance
from sdcpp_py.options.loras import Lora

PACKAGE = Path(sdcpp_py.__file__).parent
DECLARING = (
    "generation.py", "loading.py", "groups.py", "loras.py", "filming.py", "upscaling.py", "converting.py", "serving.py",
    "batching.py",
)  # fmt: skip


def groups(options: Mapping[str, Option]) -> Iterator[tuple[Option, type[Group]]]:
    """Yield the options that are groups, with their classes."""
    for option in options.values():
        if isinstance(option.kind, Grouped):
            yield option, option.kind.owner


# Options of later modes that no earlier one has.
NEW: dict[str, dict[str, Option]] = {}
for _mode in (*DRAWING[1:], *FILMING):
    known = {*TXT2IMG.declared, *(name for options in NEW.values() for name in options)}
    NEW[_mode.name] = {name: option for name, option in _mode.declared.items() if name not in known}
CALLS = {"StableDiffusion": LOADING.declared, "txt2img": TXT2IMG.declared, **NEW}
# Commands of their own, whose flags may have the names of others.
OTHERS = {
    mode.name: {
        name: option
        for name, option in mode.declared.items()
        if all(option.opt is not known.opt for known in {**LOADING.declared, **TXT2IMG.declared}.values())
    }
    for mode in (UPSCALER, UPSCALE, CONVERT)
}
STRUCTS = {mode.name: mode.struct for mode in (LOADING, *FILMING, UPSCALER, UPSCALE, CONVERT)}
CLASSES = {**{owner.__name__: owner for _, owner in groups(TXT2IMG.declared)}, "Lora": Lora}
EVERY = [
    *((call, name, option) for call, options in {**CALLS, **OTHERS}.items() for name, option in options.items()),
    *((name, key, option) for name, owner in CLASSES.items() for key, option in declared(owner).items()),
]
IDS = [f"{owner}.{name}" for owner, name, _ in EVERY]

# Values of every kind; each option takes those of its own kinds only.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "none": st.none(),
    "bool": st.booleans(),
    "int": st.integers() | st.integers(-(10**500), 10**500),
    "float": st.floats(),
    "text": st.text(max_size=8),
    "bytes": st.binary(max_size=8),
    "list": st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=3),
    "mapping": st.dictionaries(st.text(max_size=3), st.none() | st.floats(), max_size=2),
    "complex": st.complex_numbers(),
    "object": st.builds(object),
    "function": st.just(len),
    "class": st.just(dict),
}


@pytest.mark.parametrize(("owner", "name", "option"), EVERY, ids=IDS)
@settings(max_examples=60)
@given(value=st.one_of(*VALUES.values()))
def test_any_value_is_taken_or_refused_by_name(owner: str, name: str, option: Option, value: object) -> None:
    try:
        option.check(value)
    except ArgumentError as error:
        message = str(error)
        assert message.startswith(name)
        assert "\n" not in message
        assert len(message) < 400


WRONG = {
    "Integer": ["bool", "float", "text", "bytes", "list", "mapping", "complex", "object", "function"],
    "Number": ["bool", "text", "bytes", "list", "mapping", "complex", "object", "function"],
    "Switch": ["int", "float", "text", "bytes", "list", "mapping", "complex", "object", "function"],
    "Said": ["int", "float", "text", "bytes", "list", "mapping", "complex", "object", "function"],
    "Kind": ["bool", "int", "float", "bytes", "list", "mapping", "complex", "object", "function"],
    "Prompt": ["bool", "int", "float", "bytes", "list", "mapping", "complex", "object", "function"],
    "Choice": ["bool", "int", "float", "bytes", "list", "mapping", "complex", "object", "function"],
    "TypeRules": ["bool", "int", "float", "bytes", "list", "mapping", "complex", "object", "function"],
    "File": ["bool", "int", "float", "list", "mapping", "complex", "object", "function"],
    "Folder": ["bool", "int", "float", "list", "mapping", "complex", "object", "function"],
    "Target": ["bool", "int", "float", "list", "mapping", "complex", "object", "function"],
    "Items": ["bool", "int", "float", "text", "bytes", "mapping", "complex", "object", "function"],
    "Callback": ["int", "float", "text", "bytes", "list", "mapping", "complex", "object"],
    "Place": ["bool", "int", "float", "bytes", "list", "complex", "object", "function"],
    "Embeddings": ["bool", "int", "float", "text", "bytes", "list", "complex", "object", "function"],
    "Picture": ["bool", "int", "float", "text", "bytes", "list", "mapping", "complex", "object", "function", "class"],
    "Layers": ["bool", "int", "float", "text", "bytes", "list", "mapping", "complex", "object", "function", "class"],
    "Mask": ["bool", "int", "float", "text", "bytes", "list", "mapping", "complex", "object", "function", "class"],
    "Frames": ["bool", "int", "float", "text", "bytes", "mapping", "complex", "object", "function"],
    "References": ["bool", "int", "float", "text", "bytes", "mapping", "complex", "object", "function"],
    "Portraits": ["bool", "int", "float", "text", "bytes", "mapping", "complex", "object", "function"],
    "Loras": ["none", "bool", "int", "float", "complex", "object", "function"],
    "Grouped": ["int", "float", "bytes", "list", "mapping", "complex", "object", "function"],
}


def wrong_values(option: Option) -> st.SearchStrategy[Any]:
    """Return values of the kinds that an option does not take."""
    kinds = WRONG[type(option.kind).__name__]
    if not option.optional and "none" not in kinds:
        kinds = [*kinds, "none"]
    return st.one_of(*(VALUES[kind] for kind in kinds))


@pytest.mark.parametrize(("owner", "name", "option"), EVERY, ids=IDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_wrong_type_is_refused_by_name(owner: str, name: str, option: Option, data: st.DataObject) -> None:
    value = data.draw(wrong_values(option))
    if value in ([], {}) and type(option.kind).__name__ in ("Embeddings", "Place"):
        return  # nothing asked
    with pytest.raises(ArgumentError) as caught:
        option.check(value)
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize("name", LOADING.declared)
def test_loading_refuses_a_wrong_type(name: str) -> None:
    wrong: Any = object()
    with pytest.raises(ArgumentError, match=f"^{name} "):
        sdcpp_py.StableDiffusion(**{name: wrong})


@pytest.mark.parametrize("name", TXT2IMG.declared)
def test_drawing_refuses_a_wrong_type(name: str, sd: sdcpp_py.StableDiffusion) -> None:
    wrong: Any = object()
    with pytest.raises(ArgumentError, match=f"^{name} "):
        sd.txt2img(**{"prompt": "a", name: wrong})


def test_none_is_refused_where_it_means_nothing() -> None:
    for options in CALLS.values():
        for name, option in options.items():
            if option.optional:
                assert option.check(None) is None
            else:
                with pytest.raises(ArgumentError, match=f"^{name} must be"):
                    option.check(None)


def test_an_unknown_option_is_a_type_error_with_a_hint() -> None:
    with pytest.raises(
        TypeError, match=r"^txt2img\(\) got an unexpected keyword argument 'stepz'; did you mean 'steps'"
    ):
        TXT2IMG.check({"prompt": "a", "stepz": 3})
    with pytest.raises(TypeError, match="unexpected keyword argument 'vea'; did you mean 'vae'"):
        sdcpp_py.StableDiffusion(vea="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="needs prompt"):
        TXT2IMG.check({})


# --- the engine -------------------------------------------------------------------------------------------------------

SLG = tuple(f"guidance.slg.{option.opt.field}" for option in declared(SkipLayerGuidance).values())
UNREACHABLE = {
    engine.fields.CONTEXT: {
        "free_params_immediately": "an object lives until it is closed, so it is always false",
        "offload_params_to_cpu": "params_backend says it, for each module",
        "keep_clip_on_cpu": "runtime_backend says it",
        "keep_control_net_on_cpu": "runtime_backend says it",
        "keep_vae_on_cpu": "runtime_backend says it",
    },
    engine.fields.IMAGE: {
        "vae_tiling_params.enabled": "set by asking for tiles",
        "hires.enabled": "set by asking for a second pass",
    },
    engine.fields.VIDEO: {
        "vae_tiling_params.enabled": "set by asking for tiles",
        **dict.fromkeys(("clip_skip", "strength"), "the engine looks at neither in a video"),
        **{
            f"{part}.{field}": "no model for videos looks at it"
            for part in ("sample_params", "high_noise_sample_params")
            for field in ("guidance.img_cfg", "guidance.distilled_guidance", "shifted_timestep", *SLG)
        },
        **{
            f"high_noise_sample_params.{field}": "both models go along the levels of sample_params"
            for field in ("scheduler", "custom_sigmas", "flow_shift")
        },
    },
}


def reached(options: Mapping[str, Option]) -> set[str]:
    """Return the engine's fields that options fill."""
    paths = {option.opt.field for option in options.values() if not isinstance(option.kind, Grouped)}
    for option, owner in groups(options):
        paths |= {f"{option.opt.field}.{each.opt.field}" for each in declared(owner).values()}
    return paths - {""}


@pytest.mark.parametrize("struct", UNREACHABLE)
def test_every_field_of_the_engine_is_reached_or_there_is_a_reason(struct: str) -> None:
    fields = set(engine.fields.paths(struct))
    assert len(fields) > 30
    modes = [mode for mode in (LOADING, *DRAWING, *FILMING) if mode.struct == struct]
    found, excused = set().union(*(reached(mode.declared) for mode in modes)), UNREACHABLE[struct]
    assert found <= fields, "every declared field is the engine's"
    assert found & set(excused) == set(), "nothing is excused that is reached"
    assert fields == found | set(excused)


def test_every_field_of_a_lora_is_reached() -> None:
    assert {option.opt.field for option in declared(Lora).values()} == set(engine.fields.paths("sd_lora_t"))


@pytest.mark.parametrize(("owner", "name", "option"), EVERY, ids=IDS)
def test_a_default_that_is_said_to_be_the_engines_is(owner: str, name: str, option: Option) -> None:
    said = option.opt.engine_default
    if said is None or isinstance(said, str) or (owner, name) == ("Tiling", "tile_size_x"):
        return  # what the engine chooses while it works is in no struct
    prefix = next((f"{group.opt.field}." for group, each in groups(TXT2IMG.declared) if each.__name__ == owner), "")
    struct = STRUCTS.get(owner, engine.fields.IMAGE)
    assert engine.fields.defaults(struct)[f"{prefix}{option.opt.field}"] == said


def test_our_own_defaults_are_the_engines_where_it_has_one() -> None:
    for mode in (LOADING, TXT2IMG):
        own = engine.fields.defaults(mode.struct)
        for name, option in mode.declared.items():
            if option.opt.field in own and option.default is not None:
                assert option.default == own[option.opt.field], name


@pytest.mark.parametrize(("owner", "name", "option"), EVERY, ids=IDS)
def test_names_are_those_of_the_engine(owner: str, name: str, option: Option) -> None:
    if option.opt.choices:
        names = engine.enum_names(option.opt.choices)
        assert len(names) > 1
        assert set(option.opt.without) <= {*names, "q8_1", "q8_K"}
    if option.opt.titles is not None:
        assert set(option.opt.titles) == set(engine.enum_names(option.opt.choices))


# --- once -------------------------------------------------------------------------------------------------------------


@functools.cache
def constants() -> list[tuple[str, str]]:
    """Return the file and each text in the package's code, docstrings apart."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "api":
            continue  # of the server: what other programs call things
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                found.append((path.name, node.value))
    return found


TEXTS = [
    "--steps", "--cfg-scale", "--sampling-method", "--sampler", "--vae-tile-overlap", "--hires-upscaler",
    "--skip-layers", "--cache-mode", "--clip_l", "--pin-budget", "--tensor-type-rules", "--batch-count",
    "--lora-apply-mode", "--seed", "--control-image", "CFG scale", "Denoising strength", "Schedule type", "Clip skip",
    "sample_params.eta", "sample_params.guidance.txt_cfg", "denoising_strength", "clip_l_path", "n_threads",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_no_flag_field_or_name_is_written_twice(text: str) -> None:
    # A word of its own: "--steps" is not in "--steps-more", and "CFG scale" not in "Image CFG scale".
    word = re.compile(rf"(?<![\w.-])(?<!Image )(?<!noise ){re.escape(text)}(?![\w.-])")
    found = [name for name, value in constants() if word.search(value)]
    assert len(found) == 1, found
    assert found[0] in DECLARING


def test_no_range_is_written_outside_of_a_declaration() -> None:
    """Checks get their limits from the declarations; placement checks figures for those who call it directly."""
    literal = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "Range" and path.name not in (*DECLARING, "declare.py"):
                literal.append((path.name, node.lineno))
            if node.func.id in ("check_int", "check_float") and any(
                isinstance(each, ast.Constant) and not isinstance(each.value, str) for each in node.args
            ):
                literal.append((path.name, node.lineno))
    assert {name for name, _ in literal} <= {"placement.py", "pinning.py", "budgets.py"}, literal


def test_no_flag_is_declared_for_two_things() -> None:
    """A flag that options share is one of the same group, or a switch."""
    seen: dict[str, list[tuple[str, ...]]] = {}
    for call, options in CALLS.items():
        for name, option in options.items():
            for flag in option.flags:
                seen.setdefault(flag, []).append((call, name))
            if isinstance(option.kind, Grouped):
                for key, field in declared(option.kind.owner).items():
                    for flag in field.flags:
                        seen.setdefault(flag, []).append((call, name, key))
    for flag, places in seen.items():
        if len(places) > 1:
            assert flag == "--circular" or len({place[:2] for place in places}) == 1, flag


def test_groups_are_frozen() -> None:
    for owner in CLASSES.values():
        assert dataclasses.is_dataclass(owner)
        assert owner.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_only_what_must_be_given_is_required() -> None:
    required = {f"{owner}.{name}" for owner, name, option in EVERY if option.default is REQUIRED}
    assert required == {
        "txt2img.prompt", "img2img.image", "inpaint.mask", "edit.images",
        "Cache.mode", "Lora.path", "PhotoMaker.id_images", "SkipLayerGuidance.layers",
        "SkipLayerGuidance.scale", "Upscaler.model", "upscale.image", "convert.source", "convert.target",
    }  # fmt: skip


class Contrary:
    """An object that raises whatever it is asked, even for its class."""

    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)


class ContraryPath:
    """A path that raises when it is read."""

    def __fspath__(self) -> str:
        raise LookupError("no")


class ContraryMapping(dict[Any, Any]):
    """A mapping that raises when it is read."""

    def items(self) -> Any:
        raise LookupError("no")


@pytest.mark.parametrize(("owner", "name", "option"), EVERY, ids=IDS)
def test_what_a_foreign_object_raises_is_refused_by_name(owner: str, name: str, option: Option) -> None:
    for made in (Contrary, ContraryPath, lambda: ContraryMapping(a=1)):
        with pytest.raises(ArgumentError) as caught:
            option.check(made())
        assert str(caught.value).startswith(name)


def test_too_deep_a_recursion_is_not_taken_for_a_wrong_value() -> None:
    cfg_scale = TXT2IMG.declared["cfg_scale"]

    def at(depth: int) -> object:
        return cfg_scale.check(3.0) if depth == 0 else at(depth - 1)

    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
        try:
            assert at(depth) == 3.0
        except RecursionError:
            return
    raise AssertionError("it was never too deep")
