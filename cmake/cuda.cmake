# Chooses the CUDA compiler and the architectures before ggml asks for them.

# --- toolkit ---------------------------------------------------------------------------------------------------------
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    execute_process(
        COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/scripts/build/cuda_toolkit.py
                --into ${CMAKE_CURRENT_SOURCE_DIR}/build/cuda13
        OUTPUT_VARIABLE CUDAToolkit_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE
        RESULT_VARIABLE installed)
    if(NOT installed EQUAL 0)
        message(FATAL_ERROR "NVIDIA's compiler could not be installed; the line above says what to do.")
    endif()
    set(CMAKE_CUDA_COMPILER ${CUDAToolkit_ROOT}/bin/nvcc)
endif()
find_package(CUDAToolkit REQUIRED)
if(NOT TARGET CUDA::cublas)
    message(FATAL_ERROR "The CUDA toolkit of ${CUDAToolkit_BIN_DIR} has no cuBLAS: install it there, or name no compiler.")
endif()
if(NOT TARGET CUDA::cuda_driver)
    # NVIDIA's packages do not hold the driver's library; its name is all that the linker has to know.
    file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/cuda_driver.c "int sdcpp_cuda_driver_stub;\n")
    add_library(cuda_driver SHARED EXCLUDE_FROM_ALL ${CMAKE_CURRENT_BINARY_DIR}/cuda_driver.c)
    set_target_properties(cuda_driver PROPERTIES OUTPUT_NAME cuda SOVERSION 1)
    add_library(CUDA::cuda_driver ALIAS cuda_driver)
endif()

# --- architectures ---------------------------------------------------------------------------------------------------
# "release" is the list of the released wheel, and what a machine without a GPU builds.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    execute_process(
        COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
        OUTPUT_VARIABLE capabilities RESULT_VARIABLE asked ERROR_QUIET)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    list(TRANSFORM capabilities REPLACE "([0-9]+)\\.([0-9])" "\\1\\2-real")
    # With what only Hopper has.
    list(TRANSFORM capabilities REPLACE "^90-" "90a-")
    if(NOT asked EQUAL 0 OR NOT capabilities)
        set(capabilities release)
    endif()
    set(CMAKE_CUDA_ARCHITECTURES ${capabilities})
endif()
if(CMAKE_CUDA_ARCHITECTURES STREQUAL "release")
    # Machine code for Ampere (RTX 30), Ada, Hopper and Blackwell (RTX 50); the driver compiles for the others.
    set(CMAKE_CUDA_ARCHITECTURES 75-virtual 80-virtual 86-real 89-real 90a-real 120a-real)
endif()
