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
    SDCPP_CANCELLED,  /* the poll callback, sdcpp_run_cancel or sdcpp_ctx_cancel stopped the run */
    SDCPP_BROKEN,     /* an engine check failed halfway, or weights are half changed: the context closes itself */
    SDCPP_NO_ROOM,    /* device memory or its budget is too small; sdcpp_run_error says what would do */
    SDCPP_REFUSED,    /* what was asked for cannot be done; sdcpp_run_error says why, and what can */
    SDCPP_NOT_FINITE, /* NaN or infinite values came up; sdcpp_run_error says where, and the likely cause */
    SDCPP_CLOSED,     /* the context is closed, or was while the run waited for its turn */
    SDCPP_INSIDE,     /* called from a callback of a run on the same device, or on one that is busy: it would wait for ever */
    SDCPP_FORKED,     /* the process was forked after the engine was used */
    SDCPP_EXITING,    /* sdcpp_exit was called */
};

/* One call of the engine: made before it, handed to it, and asked about it afterwards. */
typedef struct sdcpp_run sdcpp_run_t;
/* A model: empty, loaded or closed. */
typedef struct sdcpp_ctx sdcpp_ctx_t;

typedef struct {
    const char* name;              /* "CPU", "CUDA0", ... */
    const char* description;       /* the maker's name of the device */
    const char* kind;              /* "cpu", "gpu", "igpu" or "accel" */
    const char* backend;           /* name of the backend that serves it */
    const char* host_buffer_type;  /* name of its host buffer type, or NULL when it has none */
    const char* module_path;       /* file of the backend module, or NULL when it cannot be told */
    const char* features;          /* features of the backend as "NAME=VALUE,..." */
    const char* problem;           /* why its memory is not known, or NULL */
    uint64_t memory_free;          /* bytes */
    uint64_t memory_total;         /* bytes */
    uint64_t memory_reserve;       /* bytes that stay free when no max_vram is given */
} sdcpp_device_t;

typedef struct {
    const char* model_path; /* an ESRGAN */
    int n_threads;          /* of the CPU; 0: the number of physical cores */
    bool conv_direct;       /* convolve without im2col */
    float max_vram;         /* as in sd_ctx_params_t */
    enum sd_kernels_t kernels; /* as in sd_ctx_params_t */
} sdcpp_upscaler_params_t;

typedef struct {
    sd_image_t image; /* RGB */
    int tile_size;    /* pixels of a side of what is computed at once; 0: all of it */
} sdcpp_upscale_params_t;

typedef struct {
    const char* name;  /* "encoding" (of pictures), "text", "sampling", "decoding" or "upscaling" */
    double seconds;
} sdcpp_phase_t;

typedef struct {
    const char* module;          /* "diffusion", "te", "clip_vision", "vae", "controlnet", "photomaker", "upscaler" */
    const char* runtime_device;  /* name of the device that computes it; NULL: the engine's default device */
    const char* params_device;   /* name of the device whose memory keeps its weights; NULL: the runtime device; "disk":
                                    they stay in the model's files, and are streamed */
    bool pin;                    /* weights in host memory are wanted in the runtime device's host buffer type */
    bool stream;                 /* weights in host memory are kept on or streamed to the runtime device, within max_vram */
    bool overlap;                /* they are copied while the device computes; else copies and computations take turns */
    uint64_t keep_bytes;         /* of weights on "disk": how many host memory keeps */
    bool past_cache;             /* the others are read past the system's cache, which has no room for them */
} sdcpp_placement_t;

typedef struct {
    const char* module;       /* as in sdcpp_placement_t */
    uint64_t bytes;           /* what its weights will take, but for the alignment of a device */
    uint64_t disk_bytes;      /* what of them could stay in the model's files */
    uint64_t stored_bytes;    /* what that takes there */
    uint64_t converted_bytes; /* what of it becomes another type as it is read */
} sdcpp_weights_t;

typedef struct {
    const char* module;             /* as in sdcpp_placement_t */
    const char* network;            /* the engine's name of the network; a module may have several */
    uint64_t weight_bytes;          /* its weights that a graph reads, as the device stores them */
    uint64_t fixed_bytes;           /* the part that stays on the device in any case while it computes */
    uint64_t largest_segment_bytes; /* the largest part that is streamed as one */
    uint64_t compute_bytes;         /* the largest compute buffer, and what computing takes besides */
    uint64_t graphs;                /* how many there are */
    uint64_t operations;            /* in all of them */
    double flops;                   /* of products and convolutions in all of them */
    double moved_bytes;             /* read and written by the other operations in all of them */
} sdcpp_demand_t;

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
    uint64_t disk_bytes;             /* what of its weights stays in the model's files besides */
    uint64_t tensors;                /* number of tensors */
} sdcpp_memory_t;

typedef struct {
    const char* module;                 /* as in sdcpp_memory_t */
    uint64_t to_device_bytes_pinned;    /* weights copied to a device from its host buffer type */
    uint64_t to_device_bytes_pageable;  /* weights copied to a device from anywhere else */
    uint64_t from_device_bytes;         /* weights copied from a device to host memory */
    double seconds;                     /* time in these copies, summed over threads */
    uint64_t copies;                    /* number of copies */
    uint64_t from_disk_bytes;           /* weights on disk that were read, as numbers of the type that they are copied in */
    double disk_seconds;                /* time in that, summed over threads */
} sdcpp_transfer_t;

typedef struct {
    const char* module;        /* as in sdcpp_placement_t */
    const char* runner;        /* the engine's name of the network; a module may have several */
    const char* device;        /* name of the runtime device */
    const char* mode;          /* "resident", "overlapped" or "in turn" */
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
    uint64_t passes;           /* computations of the network since the last generation began */
    uint64_t graphs;           /* graphs that these were computed as; lanes of one share what it copies */
    int lanes;                 /* the most passes in one of them */
    const char* lanes_reason;  /* why passes that could have been lanes were not, or "" */
    uint64_t copied_bytes;     /* streamed weights that were copied for all of them */
    uint64_t saved_bytes;      /* that would have been copied, too, for each pass by itself */
    double pass_seconds;       /* mean time of a graph, without the first after loading */
    double copy_seconds;       /* what copying the streamed part takes, measured on a part of it; negative: not measured */
    double stall_seconds;      /* what a graph waited for copies, measured in one; negative: not measured */
    const char* resident;      /* names of the resident segments, separated by ", " */
    const char* streamed;      /* names of the streamed segments, separated by ", " */
} sdcpp_stream_t;

typedef struct {
    const char* path;           /* the LoRA's file */
    float multiplier;           /* its strength; that of a file that is named twice is the sum */
    float te_multiplier;        /* the same for text encoders */
    bool merged;                /* into the weights; else it is applied to the outputs of their layers at run time */
    uint64_t tensors;           /* number of tensors in the file; 0 where the strength is 0 and it was not read */
    uint64_t applied;           /* number of them that change the model */
    uint64_t skipped;           /* number of the others */
    const char* skipped_names;  /* the first few of the others, each with the reason, separated by "; " */
} sdcpp_lora_t;

typedef struct {
    int size_multiple;         /* sides of pictures are multiples of it, in pixels */
    bool draws_images;         /* not only video */
    bool reads_references;     /* reference pictures */
    int reference_multiple;    /* sides of these are multiples of it */
    bool reads_control_image;  /* a control picture itself, without a ControlNet */
    bool fills_masks;          /* made for inpainting: it needs a picture and a mask */
    bool draws_videos;         /* videos, of one frame more than a multiple of frame_step */
    int frame_step;            /* 0: it draws none */
    bool needs_first_frame;    /* it goes on from a picture */
    bool takes_first_frame;    /* it can */
    bool takes_last_frame;     /* a picture that the video ends with, too */
    bool takes_reference;      /* a picture of what is in the video, which need not be a frame of it */
    bool takes_control_frames; /* a frame to follow for each frame */
    bool is_pair;              /* it has a second diffusion model, for the steps with much noise */
} sdcpp_abilities_t;

typedef struct {
    const char* family;       /* the engine's name of the model's family */
    bool unet;                /* a UNet; else a transformer */
    bool sdxl;                /* of the SDXL family */
    bool chroma;              /* Chroma */
    bool qwen_image;          /* Qwen-Image */
    bool image_guidance;      /* it is guided by a picture beside the text */
    bool distilled_guidance;  /* it takes the strength of its guidance as an input */
    bool clip_tokens;         /* it reads CLIP's tokens, not only their sum */
    int skippable_layers;     /* number of layers that skip layer guidance can leave out */
} sdcpp_traits_t;

typedef struct {
    const char* phase;  /* "loading", or as in sdcpp_phase_t */
    int step;           /* done so far: tensors while loading, sampling steps, tiles while encoding and decoding */
    int steps;          /* of how many; 0: not known */
    int picture;        /* that is sampled or decoded, counted from 1; those of a second pass are counted on; 0: none */
    int pictures;       /* that are wanted */
    uint64_t bytes;     /* that were read while loading */
    double seconds;     /* that a step takes */
} sdcpp_progress_t;

/* Hears how far a run is: when a phase begins, when a picture is done, and after each step. */
typedef void (*sdcpp_progress_cb_t)(const sdcpp_progress_t* progress, void* data);

typedef struct {
    const char* key;
    const char* value;
} sdcpp_text_t;

typedef struct {
    const char* source;            /* a file, an index of shards, or a folder */
    const char* target;            /* the file to write */
    bool safetensors;              /* write safetensors; else GGUF */
    bool source_is_gguf;           /* keep what the source, one GGUF file, says of itself */
    bool convert_names;            /* give tensors the engine's own names */
    enum sd_type_t wtype;          /* SD_TYPE_COUNT: each tensor's own */
    const char* tensor_type_rules; /* as in sd_ctx_params_t */
    int n_threads;                 /* 0: the number of physical cores */
    const sdcpp_text_t* metadata;  /* what the file says of itself */
    int metadata_count;
} sdcpp_convert_params_t;

typedef struct {
    const char* name;   /* in the new file */
    const char* from;   /* type */
    const char* to;     /* type; "": it is left out */
    const char* reason; /* why it is not of the type that was asked for, or left out; "" otherwise */
    uint64_t bytes;     /* in the new file */
} sdcpp_converted_t;

/* Returns true to cancel the run; called on the thread that makes the call, at most every 50 ms, also while it waits. */
typedef bool (*sdcpp_poll_cb_t)(void* data);
/* Receives a computed graph's output: the phase ("" while loading), its four sizes, innermost first, and its values. */
typedef void (*sdcpp_tap_cb_t)(const char* phase, const int64_t* ne, const float* values, void* data);

/* Returns a text in the form that a tokenizer looks at, "clip" or "t5"; it is valid until the next call. */
typedef const char* (*sdcpp_text_cb_t)(const char* form, const char* text, void* data);

/* Receives a picture as soon as it is decoded, in the order of the batch; the pixels are valid during the call. */
typedef void (*sdcpp_picture_cb_t)(const sd_image_t* picture, void* data);

/* Who listens to one run; NULL: nobody, for log lines whom sdcpp_log_set names. Those may come from any thread, everything
   else comes from the calling one. */
typedef struct {
    sd_log_cb_t log;
    sdcpp_progress_cb_t progress;
    sdcpp_poll_cb_t poll;
    sdcpp_tap_cb_t tap;
    sdcpp_text_cb_t text;
    sdcpp_picture_cb_t picture;
    sd_preview_cb_t preview;
    enum preview_t preview_mode; /* how previews are made */
    int preview_interval;        /* steps between two of them */
    void* data;                  /* given to each of these functions */
} sdcpp_callbacks_t;

/* --- the process --- */

/* Returns the upstream commit of the engine, from the lock file. */
SD_API const char* sdcpp_engine_commit(void);
/* Returns the version of ggml. */
SD_API const char* sdcpp_ggml_version(void);
/* Returns the commit of ggml, from the lock file. */
SD_API const char* sdcpp_ggml_commit(void);
/* Returns the path of the engine library, or NULL when it cannot be told. */
SD_API const char* sdcpp_library_path(void);
/* Sets who receives log lines that belong to no run; NULL: nobody. */
SD_API void sdcpp_log_set(sd_log_cb_t log, void* data);
/* Says, in a forked child, that it is one: calls fail there from now on and free nothing, if the engine was used before. */
SD_API void sdcpp_forked(void);
/* Tells whether this is such a child. */
SD_API bool sdcpp_is_forked(void);
/* Refuses new runs, cancels those there are and waits for them, for some milliseconds at most; then frees all contexts.
   Calls on other threads do not return any more. Returns false when runs are left. */
SD_API bool sdcpp_exit(int milliseconds);
/* Returns unless sdcpp_exit was called, and on the thread that called it: other threads do not return any more. */
SD_API void sdcpp_stay_at_exit(void);

/* --- runs --- */

/* Makes a run, for one call; sdcpp_run_free frees it. */
SD_API sdcpp_run_t* sdcpp_run_new(const sdcpp_callbacks_t* callbacks);
/* Cancels a run, before or during its call; safe from any thread and in its callbacks. */
SD_API void sdcpp_run_cancel(sdcpp_run_t* run);
/* Returns the text of the first failed engine check of a run, else of its last C++ exception, or "". */
SD_API const char* sdcpp_run_error(const sdcpp_run_t* run);
/* Tells whether a run ended since a device had no memory left; its status is SDCPP_NO_ROOM where the context works on. */
SD_API bool sdcpp_run_no_room(const sdcpp_run_t* run);
/* Returns the number of phases that a run went through. */
SD_API int sdcpp_run_phase_count(const sdcpp_run_t* run);
/* Fills in one phase of a run. */
SD_API bool sdcpp_run_phase_get(const sdcpp_run_t* run, int index, sdcpp_phase_t* phase);
/* Fills in what became of one LoRA file of a run that has generated, or tried to; returns false behind the last one. */
SD_API bool sdcpp_run_lora_get(const sdcpp_run_t* run, int index, sdcpp_lora_t* lora);
/* Frees a run whose call has returned, with the images and the strings that it gave. */
SD_API void sdcpp_run_free(sdcpp_run_t* run);

/* --- devices --- */

/* Returns the name of a kernel policy; NULL for none. */
SD_API const char* sdcpp_kernels_name(enum sd_kernels_t kernels);
/* Returns the kernel policy of a name; SD_KERNELS_COUNT for none. */
SD_API enum sd_kernels_t sdcpp_str_to_kernels(const char* name);
/* Loads every backend module beside the engine library, once. */
SD_API enum sdcpp_status_t sdcpp_backends_load(sdcpp_run_t* run);
/* Loads one backend module from a file; fails when it is none, or made for another ggml. */
SD_API enum sdcpp_status_t sdcpp_backend_load(sdcpp_run_t* run, const char* path);
/* Fills in the devices, capacity at most, and how many there are; the strings live as long as the run. */
SD_API enum sdcpp_status_t sdcpp_devices(sdcpp_run_t* run, sdcpp_device_t* devices, int capacity, int* count);

/* Measures how many bytes a second arrive on a device from its host buffer type; 0: it has none, or refuses the memory. */
SD_API enum sdcpp_status_t sdcpp_device_bus_rate(sdcpp_run_t* run, const char* device, double* rate);

/* --- models --- */

/* Reads the headers of a model's files and fills in what the weights of each module will take, and what of them could
   stay in these files. */
SD_API enum sdcpp_status_t sdcpp_weights_survey(sdcpp_run_t* run, const sd_ctx_params_t* params,
                                                sdcpp_weights_t* weights, int capacity, int* count);
/* Reads the headers of a model's files and says what the VAE's encoder takes besides what the survey says; 0: they hold
   none, or it counts there already. */
SD_API enum sdcpp_status_t sdcpp_encoder_survey(sdcpp_run_t* run, const sd_ctx_params_t* params, uint64_t* bytes);
/* Goes through a generation, of which nothing is loaded or computed, and fills in what each network takes of a device;
   NULL: of the CPU. One of the two structs says what is drawn. The strings live as long as the run. */
SD_API enum sdcpp_status_t sdcpp_picture_survey(sdcpp_run_t* run, const sd_ctx_params_t* params, const char* device,
                                                const sd_img_gen_params_t* images, const sd_vid_gen_params_t* video,
                                                sdcpp_demand_t* demands, int capacity, int* count);
/* Makes an empty context; sdcpp_ctx_free frees it. */
SD_API sdcpp_ctx_t* sdcpp_ctx_new(void);
/* Loads a model into an empty context with its modules placed, those not named as the flags in params say. */
SD_API enum sdcpp_status_t sdcpp_ctx_load(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_ctx_params_t* params,
                                          const sdcpp_placement_t* placements, int count);
/* Reads the VAE's encoder, with the VAE itself, from the files of a loaded model; does nothing where it is loaded. Without
   it pictures cannot go in. The parameters are those that the model was loaded with. */
SD_API enum sdcpp_status_t sdcpp_ctx_load_encoder(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_ctx_params_t* params);
/* Generates params->batch_count images, which the run's picture callback receives. */
SD_API enum sdcpp_status_t sdcpp_image_generate(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_img_gen_params_t* params);
/* Generates a video; its frames belong to the run, and count says how many there are. */
SD_API enum sdcpp_status_t sdcpp_video_generate(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_vid_gen_params_t* params,
                                                sd_image_t** frames, int* count);
/* Frees the pixels of one of a run's frames, which have been read; else they are freed with the run. */
SD_API void sdcpp_run_pixels_free(sdcpp_run_t* run, int index);
/* Fills in where the weights of the modules are, capacity rows at most, and how many there are. As in the next two, the
   strings live as long as the run. */
SD_API enum sdcpp_status_t sdcpp_ctx_memory(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_memory_t* rows, int capacity,
                                            int* count);
/* Fills in what was copied for each module since the context was loaded. */
SD_API enum sdcpp_status_t sdcpp_ctx_transfers(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_transfer_t* rows, int capacity,
                                               int* count);
/* Says how much memory of a device a context may use with its reserve: what is free, and what it holds there itself. */
SD_API enum sdcpp_status_t sdcpp_ctx_usable(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const char* device, uint64_t* bytes);
/* Describes how the networks that can be streamed were last computed. */
SD_API enum sdcpp_status_t sdcpp_ctx_streams(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_stream_t* rows, int capacity,
                                             int* count);
/* Returns how many layers the loaded model's CLIP text encoders have, the least of them; 0 without one. */
SD_API int sdcpp_ctx_clip_layers(const sdcpp_ctx_t* ctx);
/* Fills in what the loaded model can be asked for. */
SD_API void sdcpp_ctx_traits(const sdcpp_ctx_t* ctx, sdcpp_traits_t* traits);
/* Says what became of each LoRA file of the last picture. */
SD_API enum sdcpp_status_t sdcpp_ctx_loras(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_lora_t* rows, int capacity,
                                           int* count);
/* Fills in what the loaded model is able to do. */
SD_API void sdcpp_ctx_abilities(const sdcpp_ctx_t* ctx, sdcpp_abilities_t* abilities);
/* Returns the sampler that the engine takes for the loaded model. */
SD_API enum sample_method_t sdcpp_ctx_sampler(const sdcpp_ctx_t* ctx);
/* Returns the scheduler that the engine takes for the loaded model and a sampler. */
SD_API enum scheduler_t sdcpp_ctx_scheduler(const sdcpp_ctx_t* ctx, enum sample_method_t sampler);

/* --- upscalers: contexts, too, for what is said of any --- */

/* Fill in the defaults. */
SD_API void sdcpp_upscaler_params_init(sdcpp_upscaler_params_t* params);
SD_API void sdcpp_upscale_params_init(sdcpp_upscale_params_t* params);
/* Reads the header of an upscaler's file and says what its weights will take. */
SD_API enum sdcpp_status_t sdcpp_upscaler_survey(sdcpp_run_t* run, const sdcpp_upscaler_params_t* params,
                                                 uint64_t* bytes);
/* Loads an upscaler into an empty context, its module placed as asked for. */
SD_API enum sdcpp_status_t sdcpp_upscaler_load(sdcpp_run_t* run, sdcpp_ctx_t* ctx,
                                               const sdcpp_upscaler_params_t* params,
                                               const sdcpp_placement_t* placements, int count);
/* Makes a picture larger; the pixels belong to the run. */
SD_API enum sdcpp_status_t sdcpp_upscale(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sdcpp_upscale_params_t* params,
                                         sd_image_t* image);
/* Returns how many times longer the loaded upscaler makes a side. */
SD_API int sdcpp_ctx_upscale_factor(const sdcpp_ctx_t* ctx);

/* --- files --- */

/* Fills in the defaults. */
SD_API void sdcpp_convert_params_init(sdcpp_convert_params_t* params);
/* Makes one file of a model's, of another type or format. Half a file may be left when it fails. */
SD_API enum sdcpp_status_t sdcpp_convert(sdcpp_run_t* run, const sdcpp_convert_params_t* params);
/* Fills in what became of one tensor of a run that has converted; returns false behind the last one. */
SD_API bool sdcpp_run_converted_get(const sdcpp_run_t* run, int index, sdcpp_converted_t* converted);

/* --- any context --- */

/* Cancels the runs of a context, those that wait for their turn too. */
SD_API void sdcpp_ctx_cancel(sdcpp_ctx_t* ctx);
/* Closes a context: calls fail from now on, those that wait as well. Its memory is freed when its device is free; with a
   run, that is waited for. Called in a callback of a run it never waits. */
SD_API enum sdcpp_status_t sdcpp_ctx_close(sdcpp_run_t* run, sdcpp_ctx_t* ctx);
/* Tells whether a context is closed, even if its memory is not free yet. */
SD_API bool sdcpp_ctx_closed(const sdcpp_ctx_t* ctx);
/* Closes a context without waiting and forgets it. */
SD_API void sdcpp_ctx_free(sdcpp_ctx_t* ctx);

#ifdef __cplusplus
}
#endif

#endif /* SDCPP_H */
