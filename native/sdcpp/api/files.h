/* What a model file holds, from its header alone: for checks before the engine reads it, and for people who ask. */
#ifndef SDCPP_FILES_H
#define SDCPP_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stable-diffusion.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sdcpp_file_t sdcpp_file_t; /* what one file, index of shards, or folder lists */

typedef struct {
    const char* name; /* as the file has it, behind the prefix of its part of a pipeline */
    const char* type; /* "F16", "F8_E4M3", ..., or ggml's name of a quantised type */
    int dimensions;
    int64_t shape[8]; /* the last dimension is the one in a row */
    uint64_t bytes;   /* as the file stores it */
} sdcpp_file_tensor_t;

typedef struct {
    const char* key;
    const char* value;
    bool whole; /* else the value only says what it is: "a list of 5" */
} sdcpp_file_value_t;

/* Lists a file; NULL only without memory. sdcpp_file_free frees it. */
SD_API sdcpp_file_t* sdcpp_file_list(const char* path);
/* Says what is wrong with it, in words that follow its path, or NULL when nothing is. */
SD_API const char* sdcpp_file_error(const sdcpp_file_t* file);
/* Names its format: "safetensors", "GGUF" or "PyTorch"; "" for a folder without files. */
SD_API const char* sdcpp_file_format(const sdcpp_file_t* file);
/* Counts its tensors, but for those of a type that the engine has no use for. */
SD_API int sdcpp_file_tensor_count(const sdcpp_file_t* file);
/* Gets one of them; its texts live as long as the list. False: there is none. */
SD_API bool sdcpp_file_tensor_get(const sdcpp_file_t* file, int index, sdcpp_file_tensor_t* tensor);
/* Counts the tensors that the engine has no use for. */
SD_API int sdcpp_file_left_out_count(const sdcpp_file_t* file);
/* Names one of them and says why: "'name' (BOOL)"; NULL: there is none. */
SD_API const char* sdcpp_file_left_out(const sdcpp_file_t* file, int index);
/* Gets one of the values that the file says of itself, in their order; they live as long as the list. False: there is none. */
SD_API bool sdcpp_file_value_get(const sdcpp_file_t* file, int index, sdcpp_file_value_t* value);
SD_API void sdcpp_file_free(sdcpp_file_t* file);

#ifdef __cplusplus
}
#endif

#endif
