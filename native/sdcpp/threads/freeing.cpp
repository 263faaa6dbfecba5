#include "sdcpp/threads/freeing.h"

#include <atomic>

namespace {

std::atomic<bool (*)(ggml_backend_dev_t)> asked{nullptr};

}  // namespace

bool sdcpp_may_free(ggml_backend_dev_t device) {
    bool (*const ask)(ggml_backend_dev_t) = asked;
    return ask == nullptr || device == nullptr || ask(device);
}

void sdcpp_may_free_ask(bool (*ask)(ggml_backend_dev_t)) {
    asked = ask;
}
