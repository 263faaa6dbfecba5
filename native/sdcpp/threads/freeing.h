/* A device that fails a check fails it in destructors as well, which cannot unwind: what is freed while a check has failed
   asks here first whether its device still answers, and is given up where it does not. Part of ggml-base. */
#pragma once

#include <stdbool.h>

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tells whether what belongs to a device can be freed. */
GGML_API bool sdcpp_may_free(ggml_backend_dev_t device);
/* Sets who is asked; NULL: nobody, and everything is freed. */
GGML_API void sdcpp_may_free_ask(bool (*ask)(ggml_backend_dev_t device));

#ifdef __cplusplus
}
#endif
