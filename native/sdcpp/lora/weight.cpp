#include "sdcpp/lora/weight.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "ggml-backend.h"
#include "sdcpp/conversion/stored_numbers.h"
#include "sdcpp/placement/weights_copy.h"

namespace {

// Rows that one thread takes at least: threads are not worth starting for less than that many values.
constexpr int64_t least_values = 1 << 16;

// Converts rows in parts, each of which the loader's function can count in an int.
void convert(const ggml_tensor* weight, const void* src, ggml_type src_type, void* dst, ggml_type dst_type,
             int n_threads) {
    const int64_t columns = weight->ne[0];
    const int64_t rows = ggml_nrows(weight);
    const size_t src_row = ggml_row_size(src_type, columns);
    const size_t dst_row = ggml_row_size(dst_type, columns);
    const int64_t block = std::max<int64_t>(1, least_values / columns);
    sdcpp::in_parts((rows + block - 1) / block, n_threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first * block; row < std::min(last * block, rows); row += block) {
            const int64_t count = std::min(block, rows - row);
            // The function takes its source by a pointer to what it may change, but only reads it.
            char* from = const_cast<char*>(static_cast<const char*>(src)) + static_cast<size_t>(row) * src_row;
            char* to = static_cast<char*>(dst) + static_cast<size_t>(row) * dst_row;
            convert_tensor(from, src_type, to, dst_type, static_cast<int>(count), static_cast<int>(columns));
        }
    });
}

// Returns the number behind a word of a file, or, without a word, at its beginning; UINT64_MAX when there is none.
uint64_t number_in(const char* path, const std::string& word = "") {
    std::ifstream file(path);
    std::string found;
    while (!word.empty() && file >> found && found != word) {
    }
    uint64_t number = 0;
    return file >> number ? number : UINT64_MAX;
}

}  // namespace

namespace sdcpp {

uint64_t host_memory_free() {
    const uint64_t kibibytes = number_in("/proc/meminfo", "MemAvailable:");
    const uint64_t limit = number_in("/sys/fs/cgroup/memory.max");
    const uint64_t used = number_in("/sys/fs/cgroup/memory.current");
    const uint64_t of_system = kibibytes == UINT64_MAX ? kibibytes : kibibytes * 1024;
    const bool limited = limit != UINT64_MAX && used != UINT64_MAX;
    return limited ? std::min(of_system, limit > used ? limit - used : 0) : of_system;
}

void in_parts(int64_t count, int n_threads, const std::function<void(int64_t, int64_t)>& function) {
    const int64_t parts = std::clamp<int64_t>(n_threads, 1, std::max<int64_t>(count, 1));
    std::exception_ptr failure;
    std::mutex mutex;
    const auto run = [&](int64_t part) {
        try {
            function(count * part / parts, count * (part + 1) / parts);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (int64_t part = 1; part < parts; ++part) {
        threads.emplace_back(run, part);
    }
    run(0);
    for (auto& thread : threads) {
        thread.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

std::vector<char> weight_bytes(const ggml_tensor* weight) {
    if (weight->data == nullptr) {
        throw std::runtime_error(std::string("LoRA: the weights of ") + weight->name +
                                 " were freed after their last use");
    }
    std::vector<char> bytes(ggml_nbytes(weight));
    weights_get(weight, bytes.data(), 0, bytes.size());
    return bytes;
}

void weight_replace(ggml_tensor* weight, const std::vector<char>& bytes) {
    // The books take tensors, and a tensor's buffer is aligned.
    const std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)> buffer(
        ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), bytes.size()), ggml_backend_buffer_free);
    if (buffer == nullptr) {
        throw std::runtime_error(std::string("LoRA: no host memory to change ") + weight->name);
    }
    ggml_tensor source = *weight;
    source.buffer = buffer.get();
    source.data = ggml_backend_buffer_get_base(buffer.get());
    source.view_src = nullptr;
    std::memcpy(source.data, bytes.data(), bytes.size());
    weights_copy(&source, weight);
}

std::vector<float> weight_decode(const ggml_tensor* weight, const std::vector<char>& bytes, int n_threads) {
    std::vector<float> values(static_cast<size_t>(ggml_nelements(weight)));
    convert(weight, bytes.data(), weight->type, values.data(), GGML_TYPE_F32, n_threads);
    return values;
}

std::vector<char> weight_encode(const ggml_tensor* weight, const std::vector<float>& values, int n_threads) {
    std::vector<char> bytes(ggml_nbytes(weight));
    convert(weight, values.data(), GGML_TYPE_F32, bytes.data(), weight->type, n_threads);
    return bytes;
}

}  // namespace sdcpp
