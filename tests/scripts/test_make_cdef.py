from __future__ import annotations

from pathlib import Path

import cffi
import pytest

import make_cdef

ROOT = Path(__file__).resolve().parents[2]
HEADERS = [
    ROOT / "vendor" / "stable-diffusion.cpp" / "include" / "stable-diffusion.h",
    ROOT / "native" / "sdcpp" / "api" / "sdcpp.h",
]


def struct_fields(cdef: str, name: str) -> list[str]:
    ffi = cffi.FFI()
    ffi.cdef(cdef)
    return [field for field, _ in ffi.typeof(name).fields]


def test_real_headers_give_what_the_compiled_module_has() -> None:
    from sdcpp_py.engine import library

    compiled, _ = library()
    cdef = make_cdef.make_cdef(HEADERS)
    for name in ("sd_ctx_params_t", "sd_img_gen_params_t", "sd_sample_params_t", "sd_cache_params_t", "sdcpp_device_t"):
        assert struct_fields(cdef, name) == [field for field, _ in compiled.typeof(name).fields]


def test_a_new_field_is_picked_up(tmp_path: Path) -> None:
    text = HEADERS[0].read_text()
    changed = tmp_path / "stable-diffusion.h"
    changed.write_text(text.replace("    float max_vram;\n", "    float max_vram;\n    int brand_new;\n"))
    assert struct_fields(make_cdef.make_cdef([changed]), "sd_ctx_params_t")[-2:] == ["brand_new", "kernels"]


def test_platform_branches_comments_and_guards() -> None:
    text = """
#ifndef A_H
#define A_H
#if defined(_WIN32) || defined(__CYGWIN__)
#define SD_API __declspec(dllexport)
int windows;
#else
#if __GNUC__ >= 4
#define SD_API __attribute__((visibility("default")))
#endif
#endif
#ifdef __cplusplus
extern "C" {
#endif
#include <stdint.h>
// a comment
SD_API int one(/* inside */ int a);  // after
#ifdef __cplusplus
}
#endif
#endif
"""
    assert make_cdef.declarations(text, "a.h").split() == ["int", "one(", "int", "a);"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("#pragma pack(1)", "a.h:2: unknown directive #pragma"),
        ("#define LIMIT 5", "a.h:2: unknown directive #define LIMIT 5"),
        ("#if LIMIT > 3\n#endif", "a.h:2: cannot evaluate #if LIMIT > 3"),
        ("#ifdef FEATURE\n#endif", "a.h:2: #ifdef of unknown macro 'FEATURE'"),
        ("#ifdef _WIN32", "1 #if without #endif"),
        ("#endif", "unknown directive #endif"),
        ("#elif 1", "unknown directive #elif"),
    ],
)
def test_unknown_directives_are_errors(line: str, message: str) -> None:
    with pytest.raises(make_cdef.HeaderError, match=message.replace("(", r"\(").replace(")", r"\)")):
        make_cdef.declarations(f"int a;\n{line}\n", "a.h")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = tmp_path / "a.h"
    header.write_text("int one(void);\n")
    assert make_cdef.main([str(header)]) == 0
    assert "int one(void);" in capsys.readouterr().out
    assert make_cdef.main([str(tmp_path / "none.h")]) == 1
    assert "none.h" in capsys.readouterr().err
