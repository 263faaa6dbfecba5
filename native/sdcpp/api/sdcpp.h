/* Our C API: what the Python layer calls besides the engine's own header. */
#ifndef SDCPP_H
#define SDCPP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stable-diffusion.h"

#ifdef __cplusplus
extern "C" {
#endif

enum sdcpp_status_t {
    SDCPP_OK,
    SDCPP_FAILED,     /* the engine refused; its log lines say why */
    SDCPP_CANCELLED,  /* the poll callback or sdcpp_cancel stopped the run */
    SDCPP_BROKEN,     /* an engine check failed halfway: the context must only be freed */
    SDCPP_NO_ROOM,    /* device memory or its budget is too small; sdcpp_last_error says what would do */
};

typedef struct {
    const char* name;              /* "CPU", "CUDA0", ... */
    const char* description;       /* the maker's name of the device */
    const char* kind;              /* "cpu", "gpu", "igpu" or "accel" */
    const char* backend;           /* name of the backend that serves it */
    const char* host_buffer_type;  /* name of its host buffer type, or NULL when it has none */
    const char* module_path;       /* file of the backend module, or NULL when it cannot be told */
    uint64_t memory_free;          /* bytes */
    uint64_t memory_total;         /* bytes */
} sdcpp_device_t;

typedef struct {
    const char* name;  /* "text", "sampling" or "decoding" */
    double seconds;
} sdcpp_phase_t;

typedef struct {
    const char* module;          /* "diffusion", "te", "clip_vision", "vae", "controlnet", "photomaker", "upscaler" */
    const char* runtime_device;  /* name of the device that computes it; NULL: the engine's default device */
    const char* params_device;   /* name of the device whose memory keeps its weights; NULL: the runtime device */
    bool pin;                    /* weights in host memory are wanted in the runtime device's host buffer type */
    bool stream;                 /* weights in host memory are kept on or streamed to the runtime device, within max_vram */
    bool overlap;                /* they are copied while the device computes; else copies and computations take turns */
} sdcpp_placement_t;

typedef struct {
    const char* module;  /* as in sdcpp_placement_t */
    uint64_t bytes;      /* what its weights will take, but for the alignment of a device */
} sdcpp_weights_t;

typedef struct {
    const char* module;              /* as in sdcpp_placement_t; "MODULE.lora" for LoRA weights that are loaded */
    const char* runtime_device;      /* name of the device that computes it */
    const char* params_device;       /* name of the device whose memory keeps its weights */
    const char* wanted_buffer_type;  /* buffer type that was asked for */
    const char* buffer_type;         /* buffer type that was given; "A+B" when parts differ */
    const char* reason;              /* why it is not as wanted, or "" */
    bool pinned;                     /* all of it is in the runtime device's host buffer type */
    uint64_t bytes;                  /* memory that its weights occupy now */
    uint64_t pinned_bytes;           /* the pinned part of it */
    uint64_t tensors;                /* number of tensors */
} sdcpp_memory_t;

typedef struct {
    const char* module;                 /* as in sdcpp_memory_t */
    uint64_t to_device_bytes_pinned;    /* weights copied to a device from its host buffer type */
    uint64_t to_device_bytes_pageable;  /* weights copied to a device from anywhere else */
    uint64_t from_device_bytes;         /* weights copied from a device to host memory */
    double seconds;                     /* time in these copies, summed over threads */
    uint64_t copies;                    /* number of copies */
} sdcpp_transfer_t;

typedef struct {
    const char* module;        /* as in sdcpp_placement_t */
    const char* runner;        /* the engine's name of the network; a module may have several */
    const char* device;        /* name of the runtime device */
    const char* mode;          /* "resident", "overlapped" or "synchronous" */
    const char* reason;        /* what was refused or is missing, or "" */
    uint64_t budget_bytes;     /* device memory that the context was allowed */
    uint64_t peak_bytes;       /* the most device memory of the context while this network computed */
    uint64_t compute_bytes;    /* its compute buffer */
    uint64_t weight_bytes;     /* its weights that its graphs read, as the device stores them */
    uint64_t resident_bytes;   /* the part that stays on the device */
    uint64_t streamed_bytes;   /* the part that is copied each time a graph is computed */
    uint64_t slot_bytes;       /* memory of the slots for streamed segments, which share it; borrowed ones have none */
    int slots;                 /* number of slots, one for each streamed segment */
    int borrowed_slots;        /* those of them that lie in the compute buffer, where that is free meanwhile */
    uint64_t passes;           /* graphs computed since the last generation began */
    double pass_seconds;       /* mean time of one, without the first after loading */
    double copy_seconds;       /* what copying the streamed part takes, measured on a part of it; negative: not measured */
    double stall_seconds;      /* what one pass waited for copies, measured in one pass; negative: not measured */
    const char* resident;      /* names of the resident segments, separated by ", " */
    const char* streamed;      /* names of the streamed segments, separated by ", " */
} sdcpp_stream_t;

/* Returns true to cancel the run; called on the thread that runs the engine, at most every 50 ms. */
typedef bool (*sdcpp_poll_cb_t)(void* data);
/* Receives a computed graph's output: the phase ("" while loading), its four sizes, innermost first, and its values. */
typedef void (*sdcpp_tap_cb_t)(const char* phase, const int64_t* ne, const float* values, void* data);

/* Returns the upstream commit of the engine, from the lock file. */
SD_API const char* sdcpp_engine_commit(void);
/* Returns the version of ggml. */
SD_API const char* sdcpp_ggml_version(void);
/* Returns the commit of ggml, from the lock file. */
SD_API const char* sdcpp_ggml_commit(void);
/* Returns the path of the engine library, or NULL when it cannot be told. */
SD_API const char* sdcpp_library_path(void);

/* Loads every backend module beside the engine library, once, and returns the number of devices. */
SD_API int sdcpp_backends_load(void);
/* Loads one backend module from a file; false when it is none, or made for another ggml. */
SD_API bool sdcpp_backend_load(const char* path);
/* Returns the number of devices. */
SD_API int sdcpp_device_count(void);
/* Fills in one device; the strings live as long as the process. */
SD_API bool sdcpp_device_get(int index, sdcpp_device_t* device);
/* Writes a device's backend features as "NAME=VALUE,..." and returns the length that is needed. */
SD_API size_t sdcpp_device_features(int index, char* text, size_t size);

/* Sets the function that is polled while the engine works; NULL removes it. */
SD_API void sdcpp_set_poll_callback(sdcpp_poll_cb_t poll, void* data);
/* Sets the function that sees the f32 output of every graph the engine computes; NULL removes it. */
SD_API void sdcpp_set_tap_callback(sdcpp_tap_cb_t tap, void* data);
/* Cancels the run that is under way; safe from any thread. */
SD_API void sdcpp_cancel(void);
/* Returns the text of the last C++ exception or failed engine check of this thread's last run, or "". */
SD_API const char* sdcpp_last_error(void);

/* Reads the headers of a model's files and fills in what the weights of each module will take. */
SD_API enum sdcpp_status_t sdcpp_weights_survey(const sd_ctx_params_t* params, sdcpp_weights_t* weights, int capacity,
                                                int* count);
/* Loads a model with its modules placed, those not named as the flags in params say; *ctx is set only with SDCPP_OK,
   and sdcpp_ctx_free frees it. */
SD_API enum sdcpp_status_t sdcpp_ctx_new(const sd_ctx_params_t* params, const sdcpp_placement_t* placements, int count,
                                         sd_ctx_t** ctx);
/* Frees a context; memory of one that is SDCPP_BROKEN is freed as far as that is safe. */
SD_API void sdcpp_ctx_free(sd_ctx_t* ctx);
/* Returns the number of modules that have or had weights. */
SD_API int sdcpp_memory_count(const sd_ctx_t* ctx);
/* Fills in where one module's weights are; the strings live until this thread's next call. */
SD_API bool sdcpp_memory_get(const sd_ctx_t* ctx, int index, sdcpp_memory_t* memory);
/* Returns the number of modules whose copies are counted. */
SD_API int sdcpp_transfer_count(const sd_ctx_t* ctx);
/* Fills in what was copied for one module since the context was made. */
SD_API bool sdcpp_transfer_get(const sd_ctx_t* ctx, int index, sdcpp_transfer_t* transfer);
/* Returns how many of the context's networks can be streamed. */
SD_API int sdcpp_stream_count(const sd_ctx_t* ctx);
/* Describes how one of them was last computed; false when it was not, or the index is wrong. The text lasts until the next call. */
SD_API bool sdcpp_stream_get(const sd_ctx_t* ctx, int index, sdcpp_stream_t* stream);
/* Generates params->batch_count images; *images is set only with SDCPP_OK, and sdcpp_images_free frees it. */
SD_API enum sdcpp_status_t sdcpp_image_generate(sd_ctx_t* ctx, const sd_img_gen_params_t* params, sd_image_t** images);
/* Frees images and their pixels. */
SD_API void sdcpp_images_free(sd_image_t* images, int count);
/* Returns the number of phases that the last run on this thread went through. */
SD_API int sdcpp_phase_count(void);
/* Fills in one phase of the last run on this thread. */
SD_API bool sdcpp_phase_get(int index, sdcpp_phase_t* phase);

typedef struct {
    const char* path;           /* the LoRA's file */
    float multiplier;           /* its strength; that of a file that is named twice is the sum */
    bool merged;                /* into the weights; else it is applied to the outputs of their layers at run time */
    uint64_t tensors;           /* number of tensors in the file; 0 where the strength is 0 and it was not read */
    uint64_t applied;           /* number of them that change the model */
    uint64_t skipped;           /* number of the others */
    const char* skipped_names;  /* the first few of the others, each with the reason, separated by "; " */
} sdcpp_lora_t;

/* Returns the number of LoRA files of the context's last run. */
SD_API int sdcpp_lora_count(const sd_ctx_t* ctx);
/* Fills in what became of one of them; the strings live until the context's next run. */
SD_API bool sdcpp_lora_get(const sd_ctx_t* ctx, int index, sdcpp_lora_t* lora);

#ifdef __cplusplus
}
#endif

#endif /* SDCPP_H */
