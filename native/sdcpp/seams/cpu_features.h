// The engine asks ggml's CPU module for its features by linking to it, which a backend that is loaded at run time
// does not allow. These answer the same questions through the registry. Included inside a namespace, so that no
// symbol of ggml's own name is exported: the module would call it back for ever.

#define SDCPP_CPU_FEATURE(function, name) \
    inline int function() { return ::sdcpp::cpu_feature(name); }

SDCPP_CPU_FEATURE(ggml_cpu_has_sse3, "SSE3")
SDCPP_CPU_FEATURE(ggml_cpu_has_avx, "AVX")
SDCPP_CPU_FEATURE(ggml_cpu_has_avx2, "AVX2")
SDCPP_CPU_FEATURE(ggml_cpu_has_avx512, "AVX512")
SDCPP_CPU_FEATURE(ggml_cpu_has_avx512_vbmi, "AVX512_VBMI")
SDCPP_CPU_FEATURE(ggml_cpu_has_avx512_vnni, "AVX512_VNNI")
SDCPP_CPU_FEATURE(ggml_cpu_has_fma, "FMA")
SDCPP_CPU_FEATURE(ggml_cpu_has_neon, "NEON")
SDCPP_CPU_FEATURE(ggml_cpu_has_arm_fma, "ARM_FMA")
SDCPP_CPU_FEATURE(ggml_cpu_has_f16c, "F16C")
SDCPP_CPU_FEATURE(ggml_cpu_has_fp16_va, "FP16_VA")
SDCPP_CPU_FEATURE(ggml_cpu_has_wasm_simd, "WASM_SIMD")
SDCPP_CPU_FEATURE(ggml_cpu_has_vsx, "VSX")

#undef SDCPP_CPU_FEATURE
