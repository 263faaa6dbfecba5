#include "sdcpp/disk/disk_weights.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#ifndef _WIN32
#include <sys/mman.h>
#endif

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "model_io/tensor_storage.h"
#include "sdcpp/conversion/stored_numbers.h"
#include "sdcpp/placement/weights_record.h"

namespace sdcpp {

namespace {

constexpr size_t alignment = 128;
constexpr size_t small_bytes = 16u << 10;  // many of them take little, and reading each takes as long as much more
constexpr size_t block = 1u << 20;         // what is kept or not
constexpr size_t run = 4;                  // blocks that are mostly kept or read together
constexpr size_t gap = 1u << 20;           // around the addresses, so that nothing else lies next to them

// Tells whether a tensor is worth reading again and again.
bool is_large(const ggml_tensor* tensor) {
    return ggml_nbytes(tensor) >= small_bytes && ggml_n_dims(tensor) > 1;
}

bool can_only_be_read_whole(const TensorStorage& storage) {
    return storage.reading != nullptr || storage.index_in_zip >= 0;
}

// Tells whether a tensor's bytes are those of the file.
bool is_plain(const TensorStorage& storage, const ggml_tensor& tensor) {
    return storage.type == tensor.type && storage.nbytes_to_read() == storage.nbytes();
}

DiskWeights& weights_of(ggml_backend_buffer_t buffer) {
    return *static_cast<DiskWeights*>(buffer->context);
}

void free_buffer(ggml_backend_buffer_t) {}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
    weights_of(buffer).read(static_cast<const char*>(tensor->data) + offset, data, size);
}

[[noreturn]] void refuse() {
    throw DiskError("they cannot be changed there: take lora_apply_mode='at_runtime', or params_backend='cpu'");
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t) {
    refuse();
}

void memset_tensor(ggml_backend_buffer_t, ggml_tensor*, uint8_t, size_t, size_t) {
    refuse();
}

void clear(ggml_backend_buffer_t, uint8_t) {
    refuse();
}

const char* type_name(ggml_backend_buffer_type_t) {
    return "disk";
}

ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t, size_t) {
    return nullptr;
}

size_t type_alignment(ggml_backend_buffer_type_t) {
    return alignment;
}

bool type_is_host(ggml_backend_buffer_type_t) {
    return false;
}

ggml_backend_buffer_type_t disk_type() {
    static ggml_backend_buffer_type type = {
        {type_name, type_alloc, type_alignment, nullptr, nullptr, type_is_host}, nullptr, nullptr};
    return &type;
}

}  // namespace

struct DiskWeights::Place {
    ggml_tensor shape;
    TensorStorage storage;
    std::shared_ptr<DiskFile> file;
};

std::unique_ptr<DiskWeights> DiskWeights::place(ggml_context* ctx, uint64_t& keep_bytes, bool past_cache,
                                                std::shared_ptr<WeightsRecord> record) {
    std::vector<std::pair<ggml_tensor*, uint64_t>> left;
    uint64_t total = 0, bytes = 0;
    for (ggml_tensor* t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        if (t->data == nullptr && t->view_src == nullptr && is_large(t)) {
            left.emplace_back(t, bytes);
            total += ggml_nbytes(t);
            bytes += GGML_PAD(ggml_nbytes(t), alignment);
        }
    }
    const uint64_t kept = std::min(keep_bytes, total);
    keep_bytes -= kept;
    if (kept == total) {
        return nullptr;
    }
    std::unique_ptr<DiskWeights> made(new DiskWeights);
    made->record_ = std::move(record);
    made->bytes_ = bytes;
    made->past_cache_ = past_cache;
    made->may_keep_ = kept;
#ifndef _WIN32
    void* const mapping =
        mmap(nullptr, bytes + 2 * gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    made->base_ = mapping == MAP_FAILED ? nullptr : static_cast<char*>(mapping) + gap;
#endif
    if (made->base_ == nullptr) {
        throw DiskError("there are no addresses for them: take params_backend='cpu'");
    }
    static const ggml_backend_buffer_i interface = {
        free_buffer, [](ggml_backend_buffer_t buffer) { return static_cast<void*>(weights_of(buffer).base_); },
        nullptr,     memset_tensor,
        set_tensor,  get_tensor,
        nullptr,     clear,
        nullptr};
    made->buffer_ = ggml_backend_buffer_init(disk_type(), interface, made.get(), bytes);
    for (const auto& [tensor, offset] : left) {
        ggml_backend_tensor_alloc(made->buffer_, tensor, made->base_ + offset);
    }
    return made;
}

DiskWeights::~DiskWeights() {
#ifndef _WIN32
    if (base_ != nullptr) {
        munmap(base_ - gap, bytes_ + 2 * gap);
    }
#endif
}

bool DiskWeights::contains(const void* address) const {
    const auto* const at = static_cast<const char*>(address);
    return at >= base_ && at < base_ + bytes_;
}

void DiskWeights::take_memory(ggml_backend_buffer_type_t pinned, ggml_backend_buffer_type_t plain) {
    const size_t bytes = may_keep_ / block * block;
    for (ggml_backend_buffer_type_t type : {pinned, plain}) {
        if (type != nullptr && bytes > 0 && memory_ == nullptr) {
            memory_.reset(ggml_backend_buft_alloc_buffer(type, bytes));
        }
    }
    kept_.assign((bytes_ + block - 1) / block, nullptr);
    for (size_t end = memory_ != nullptr ? bytes : 0; end > 0; end -= block) {
        free_.push_back(static_cast<char*>(ggml_backend_buffer_get_base(memory_.get())) + end - block);
    }
}

std::vector<DiskWeights::Part> DiskWeights::keep(const std::vector<Part>& often, const std::vector<Part>& seldom) {
    size_t room = free_.size() + static_cast<size_t>(std::count_if(kept_.begin(), kept_.end(), [](const char* at) {
                      return at != nullptr;
                  }));
    std::vector<bool> seen(kept_.size()), chosen(kept_.size());
    for (const auto* ranges : {&often, &seldom}) {
        std::vector<size_t> kept, others;
        for (const Part& range : *ranges) {
            const auto begin = static_cast<size_t>(range.source - base_);
            for (size_t i = begin / block; i * block < begin + range.bytes; ++i) {
                if (!seen[i]) {
                    seen[i] = true;
                    (kept_[i] != nullptr ? kept : others).push_back(i);
                }
            }
        }
        for (const auto* blocks : {&kept, &others}) {
            const size_t runs = (blocks->size() + run - 1) / run;
            const size_t count = room >= blocks->size() ? runs : room / run;
            for (size_t n = 0; n < blocks->size(); ++n) {
                const size_t i = n / run;
                chosen[(*blocks)[n]] = (i + 1) * count / runs > i * count / runs;
            }
            room -= std::min(room, blocks->size());
        }
    }
    for (size_t i = 0; i < kept_.size(); ++i) {
        if (!chosen[i] && kept_[i] != nullptr) {
            free_.push_back(std::exchange(kept_[i], nullptr));
        }
    }
    std::vector<Part> read;
    for (size_t i = 0; i < kept_.size(); ++i) {
        if (chosen[i] && kept_[i] == nullptr) {
            kept_[i] = free_.back();
            free_.pop_back();
            Part part = {base_ + i * block, std::min(block, bytes_ - i * block), kept_[i]};
            if (!read.empty() && read.back().bytes < run * block && read.back().source + read.back().bytes == part.source &&
                read.back().kept + read.back().bytes == part.kept) {
                part = {read.back().source, read.back().bytes + part.bytes, read.back().kept};
                read.pop_back();
            }
            read.push_back(part);
        }
    }
    return read;
}

void DiskWeights::keep_nothing() {
    keep({}, {});
}

DiskWeights::Part DiskWeights::part_at(const char* address, uint64_t most) const {
    const auto at = static_cast<size_t>(address - base_);
    const size_t inside = at % block;
    size_t bytes = block - inside;
    char* const kept = kept_[at / block];
    for (size_t i = at / block + 1; i < kept_.size() && bytes < most; ++i, bytes += block) {
        if (kept_[i] != (kept != nullptr ? kept_[i - 1] + block : nullptr)) {
            break;
        }
    }
    return {address, static_cast<size_t>(std::min<uint64_t>(most, bytes)), kept != nullptr ? kept + inside : nullptr};
}

bool DiskWeights::leave(const TensorStorage& storage, const std::string& path, ggml_tensor* tensor) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (can_only_be_read_whole(storage)) {
        ggml_backend_buffer_ptr buffer(
            ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), ggml_nbytes(tensor)));
        if (buffer == nullptr) {
            throw std::bad_alloc();
        }
        tensor->buffer = buffer.get();
        tensor->data = ggml_backend_buffer_get_base(buffer.get());
        whole_.push_back(std::move(buffer));
        return false;
    }
    auto& file = files_[path];
    if (file == nullptr) {
        file = std::make_shared<DiskFile>(path);
    }
    const auto offset = static_cast<uint64_t>(static_cast<char*>(tensor->data) - base_);
    places_[offset] = std::make_unique<Place>(Place{*tensor, storage, file});
    return true;
}

void DiskWeights::read(const void* address, void* to, size_t bytes) const {
    const auto begin = std::chrono::steady_clock::now();
    auto at = static_cast<uint64_t>(static_cast<const char*>(address) - base_);
    char* out = static_cast<char*>(to);
    for (size_t left = bytes; left > 0;) {
        const auto next = places_.upper_bound(at);
        if (next == places_.begin()) {
            throw DiskError("a weight is in none of the files");
        }
        const auto& [offset, place] = *std::prev(next);
        const uint64_t inside = at - offset;
        const uint64_t size = ggml_nbytes(&place->shape);
        const uint64_t end = next == places_.end() ? bytes_ - offset : next->first - offset;
        if (inside < size) {
            const auto some = static_cast<size_t>(std::min<uint64_t>(left, size - inside));
            read_part(*place, inside, out, some);
            at += some;
            out += some;
            left -= some;
        } else {  // between two tensors
            const auto some = static_cast<size_t>(std::min<uint64_t>(left, end - inside));
            std::memset(out, 0, some);
            at += some;
            out += some;
            left -= some;
        }
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    record_->read(bytes, seconds.count());
}

// Reads some bytes of a tensor: its own, or those that the rows around them become.
void DiskWeights::read_part(const Place& place, uint64_t begin, char* to, size_t bytes) const {
    const TensorStorage& storage = place.storage;
    if (is_plain(storage, place.shape)) {
        place.file->read(storage.offset + begin, to, bytes, past_cache_);
        return;
    }
    const int64_t columns = place.shape.ne[0];
    const uint64_t row_bytes = ggml_row_size(place.shape.type, columns);
    const uint64_t first = begin / row_bytes;
    const uint64_t rows = (begin + bytes + row_bytes - 1) / row_bytes - first;
    const auto all_rows = static_cast<uint64_t>(storage.nelements() / columns);
    const uint64_t file_row = static_cast<uint64_t>(storage.nbytes_to_read()) / all_rows;
    const auto count = static_cast<int64_t>(rows) * columns;
    std::vector<char> raw(rows * file_row);
    place.file->read(storage.offset + first * file_row, raw.data(), raw.size(), past_cache_);
    std::vector<char> typed;
    if (is_stored_otherwise(storage)) {
        typed.resize(static_cast<size_t>(count) * ggml_type_size(storage.type));
        take_stored(storage, raw.data(), typed.data(), count);
        raw.swap(typed);
    }
    if (storage.type != place.shape.type) {
        typed.resize(rows * row_bytes);
        convert_tensor(raw.data(), storage.type, typed.data(), place.shape.type, static_cast<int>(rows),
                       static_cast<int>(columns));
        raw.swap(typed);
    }
    std::memcpy(to, raw.data() + (begin - first * row_bytes), bytes);
}

void DiskWeights::check() const {
    for (const auto& [path, file] : files_) {
        file->check();
    }
}

DiskWeights* disk_weights_of(const ggml_tensor* tensor) {
    ggml_backend_buffer_t const buffer = buffer_of(tensor);
    return buffer != nullptr && ggml_backend_buffer_get_type(buffer) == disk_type() ? &weights_of(buffer) : nullptr;
}

bool left_on_disk(const TensorStorage& storage, const std::string& path, ggml_tensor* tensor) {
    DiskWeights* const weights = disk_weights_of(tensor);
    return weights != nullptr && weights->leave(storage, path, tensor);
}

void count_stored(const TensorStorage& storage, const ggml_tensor* tensor, sdcpp_weights_t& weights) {
    if (is_large(tensor) && !can_only_be_read_whole(storage)) {
        weights.disk_bytes += ggml_nbytes(tensor);
        weights.stored_bytes += static_cast<uint64_t>(storage.nbytes_to_read());
        weights.converted_bytes += is_plain(storage, *tensor) ? 0 : ggml_nbytes(tensor);
    }
}

}  // namespace sdcpp
