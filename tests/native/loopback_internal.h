// What the parts of the loopback accelerator's state share.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

#include "ggml.h"

namespace loopback {

__attribute__((format(printf, 1, 2))) inline std::string format(const char* text, ...) {
    char buffer[512];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(buffer, sizeof(buffer), text, arguments);
    va_end(arguments);
    return buffer;
}

inline uintptr_t address_of(const ggml_tensor* tensor, size_t offset = 0) {
    return reinterpret_cast<uintptr_t>(tensor->data) + offset;
}

}  // namespace loopback
