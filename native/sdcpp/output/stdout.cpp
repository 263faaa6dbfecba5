// Where the engine's and ggml's prints go instead of standard output.
#include "sdcpp/output/stdout.h"

#include <algorithm>
#include <cstdarg>
#include <string>
#include <vector>

#include "ggml-impl.h"

namespace {

constexpr size_t longest_line = 4096;

thread_local std::string waiting;

void log_lines() {
    for (size_t end = waiting.find('\n'); end != std::string::npos || waiting.size() > longest_line;
         end = waiting.find('\n')) {
        const std::string line = waiting.substr(0, std::min(end, longest_line));
        waiting.erase(0, end == std::string::npos ? line.size() : std::max(end + 1, line.size()));
        GGML_LOG_INFO("%s\n", line.c_str());
    }
}

}  // namespace

int sdcpp_print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    va_list again;
    va_copy(again, arguments);
    const int size = std::vsnprintf(nullptr, 0, format, arguments);
    va_end(arguments);
    if (size > 0) {
        std::vector<char> text(static_cast<size_t>(size) + 1);
        std::vsnprintf(text.data(), text.size(), format, again);
        waiting.append(text.data(), static_cast<size_t>(size));
        log_lines();
    }
    va_end(again);
    return size;
}
