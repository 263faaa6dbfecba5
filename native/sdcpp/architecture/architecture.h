// Sizes of the networks, read from the names and shapes of a checkpoint's tensors; called by the module constructors.
//
// Every function leaves the sizes of the engine's own table alone where the checkpoint does not hold the tensor that
// tells them, and throws std::runtime_error, with one sentence that names a tensor, where a module with the
// checkpoint's sizes cannot be built.
#pragma once

#include "sdcpp/architecture/check.h"
#include "sdcpp/architecture/clip.h"
#include "sdcpp/architecture/esrgan.h"
#include "sdcpp/architecture/flux.h"
#include "sdcpp/architecture/llm.h"
#include "sdcpp/architecture/mmdit.h"
#include "sdcpp/architecture/qwen_image.h"
#include "sdcpp/architecture/t5.h"
#include "sdcpp/architecture/text.h"
#include "sdcpp/architecture/unet.h"
#include "sdcpp/architecture/vae.h"
#include "sdcpp/architecture/wan.h"
#include "sdcpp/architecture/z_image.h"
