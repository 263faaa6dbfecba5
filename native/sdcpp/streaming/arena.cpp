#include "sdcpp/streaming/arena.h"

#include <algorithm>

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "sdcpp/placement/weights_record.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/compute_use.h"

namespace sdcpp {

namespace {

constexpr uint64_t block_share = 8;  // residents are evicted in blocks of this share of them

// Backends that store the bytes of a tensor as they are: parts of tensors, and neighbours at once, can be copied.
const char* const plain_backends[] = {"CUDA", "ROCm", "MUSA", "Vulkan", "Loopback"};

}  // namespace

Arena::Arena(ggml_backend_t backend, const StreamPlan& plan)
    : dev_(ggml_backend_get_device(backend)), type_(ggml_backend_get_default_buffer_type(backend)), plan_(plan) {}

// --- what lies where -------------------------------------------------------------------------------------------------

void Arena::assign(const Scan& scan) {
    std::vector<int> slot_of(scan.segments.size(), -1);
    for (size_t i = 0; i < plan_.slots.size(); ++i) {
        for (size_t segment : plan_.slots[i].segments) {
            slot_of[segment] = static_cast<int>(i);
        }
    }
    weights_.clear();
    for (size_t i = 0; i < scan.weights.size(); ++i) {
        Weight weight;
        weight.tensor = scan.weights[i];
        weight.bytes = padded_size(type_, weight.tensor);
        weight.segment = scan.segment_of[i];
        weight.slot = weight.segment < 0 ? -1 : slot_of[static_cast<size_t>(weight.segment)];
        weight.borrows = !weight.resident() && plan_.slots[static_cast<size_t>(weight.slot)].borrows;
        weights_.push_back(weight);
    }
    // Neighbours in host memory are neighbours in a slot, so that one copy takes both.
    std::vector<Weight*> order;
    for (Weight& weight : weights_) {
        order.push_back(&weight);
    }
    std::sort(order.begin(), order.end(),
              [](const Weight* a, const Weight* b) { return a->tensor->data < b->tensor->data; });
    std::vector<uint64_t> filled(plan_.slots.size());
    for (Weight* weight : order) {
        if (!weight->resident()) {
            uint64_t& end = filled[static_cast<size_t>(weight->slot)];
            weight->offset = end;
            end += weight->bytes;
        }
    }
}

void Arena::outdate() {
    for (Weight& weight : weights_) {
        weight.loaded = false;
    }
}

// --- device memory ---------------------------------------------------------------------------------------------------

uint64_t Arena::bytes() const {
    uint64_t bytes = 0;
    for (const Block& block : blocks_) {
        bytes += block.buffer ? block.bytes : 0;
    }
    return bytes;
}

bool Arena::alloc() {
    if (weights_.empty()) {
        return true;
    }
    if (!blocks_.empty()) {
        return fill();
    }
    if (!create()) {
        clear();
        return false;
    }
    return true;
}

bool Arena::create() {
    divide_into_blocks();
    uint64_t longest_tail = 0;
    for (const Weight& weight : weights_) {
        if (!weight.resident()) {
            const uint64_t tail = ggml_backend_buft_get_alloc_size(type_, weight.tensor) - ggml_nbytes(weight.tensor);
            longest_tail = std::max(longest_tail, tail);
        }
    }
    if (longest_tail > 0) {
        ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(dev_);
        zeros_.reset(
            ggml_backend_buft_alloc_buffer(host != nullptr ? host : ggml_backend_cpu_buffer_type(), longest_tail));
        if (!zeros_) {
            return false;
        }
        ggml_backend_buffer_clear(zeros_.get(), 0);
    }
    if (!fill()) {
        return false;
    }
    base_ = static_cast<char*>(ggml_backend_buffer_get_base(blocks_.front().buffer.get()));
    for (const Weight& weight : weights_) {
        if (!weight.resident()) {
            put_in_slot(weight.place, weight.slot, weight.offset);
        }
    }
    pinned_ = weights_pinned(weights_.front().tensor->buffer);
    unloaded_ = true;
    return true;
}

// Makes the blocks, without memory, and for each weight the tensor that has its place.
void Arena::divide_into_blocks() {
    if (plan_.slot_bytes > 0) {
        blocks_.push_back({plan_.slot_bytes, nullptr});
    }
    const uint64_t most = std::min<uint64_t>(ggml_backend_buft_get_max_size(type_), plan_.resident_bytes / block_share);
    const size_t tensors = 2 * (weights_.size() + plan_.slots.size());
    places_.reset(ggml_init({tensors * ggml_tensor_overhead(), nullptr, true}));
    for (Weight& weight : weights_) {
        weight.place = ggml_dup_tensor(places_.get(), weight.tensor);
        ggml_set_name(weight.place, weight.tensor->name);
        weight.loaded = false;
        if (!weight.resident()) {
            continue;
        }
        if (blocks_.size() == first_resident_block() || weight.bytes > saturating_sub(most, blocks_.back().bytes)) {
            blocks_.push_back({0, nullptr});
        }
        weight.block = blocks_.size() - 1;
        weight.offset = blocks_.back().bytes;
        blocks_.back().bytes += weight.bytes;
    }
}

// Allocates the blocks that are missing; their residents have to be loaded.
bool Arena::fill() {
    for (size_t i = 0; i < blocks_.size(); ++i) {
        Block& block = blocks_[i];
        if (block.buffer) {
            continue;
        }
        block.buffer.reset(ggml_backend_buft_alloc_buffer(type_, block.bytes));
        if (!block.buffer) {
            return false;
        }
        ggml_backend_buffer_set_usage(block.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (const Weight& weight : weights_) {
            if (weight.resident() && weight.block == i) {
                char* const base = static_cast<char*>(ggml_backend_buffer_get_base(block.buffer.get()));
                ggml_backend_tensor_alloc(block.buffer.get(), weight.place, base + weight.offset);
                unloaded_ = true;
            }
        }
    }
    return true;
}

uint64_t Arena::evict(uint64_t bytes) {
    for (size_t i = blocks_.size(); i-- > first_resident_block() && bytes > 0;) {
        Block& block = blocks_[i];
        if (!block.buffer) {
            continue;
        }
        for (Weight& weight : weights_) {
            if (weight.resident() && weight.block == i) {
                weight.loaded = false;
                weight.place->buffer = nullptr;
                weight.place->data = nullptr;
            }
        }
        block.buffer.reset();
        bytes = saturating_sub(bytes, block.bytes);
    }
    return bytes;
}

void Arena::clear() {
    for (Weight& weight : weights_) {
        weight.place = nullptr;
        weight.loaded = false;
    }
    places_.reset();
    blocks_.clear();
    zeros_.reset();
}

// --- copies ----------------------------------------------------------------------------------------------------------

// Gives a tensor its address in a slot, `begin` bytes from there.
void Arena::put_in_slot(ggml_tensor* tensor, int slot, uint64_t begin) {
    const Slot& planned = plan_.slots[static_cast<size_t>(slot)];
    char* const address = base_ + planned.offset + begin;
    if (planned.borrows) {  // from the compute buffer, which is not there yet
        tensor->buffer = &borrowed_;
        tensor->data = address;
    } else {
        ggml_backend_tensor_alloc(blocks_.front().buffer.get(), tensor, address);
    }
}

std::vector<std::vector<SlotCopy>> Arena::slot_copies() {
    std::vector<std::vector<SlotCopy>> copies;
    for (int i = 0; i < static_cast<int>(plan_.slots.size()); ++i) {
        copies.push_back(copies_of(i));
    }
    return copies;
}

std::vector<SlotCopy> Arena::copies_of(int slot) {
    const bool plain = is_one_of(plain_backends, dev_);
    const auto bytes_at = [&](uint64_t begin, uint64_t bytes) {
        ggml_tensor* tensor = ggml_new_tensor_1d(places_.get(), GGML_TYPE_I8, static_cast<int64_t>(bytes));
        put_in_slot(tensor, slot, begin);
        return tensor;
    };
    ggml_tensor* const all = plain ? bytes_at(0, plan_.slots[static_cast<size_t>(slot)].bytes) : nullptr;
    std::vector<SlotCopy> copies;
    const auto add = [&](const SlotCopy& next) {
        if (plain && !copies.empty() && copies.back().end == next.begin &&
            copies.back().source + (copies.back().end - copies.back().begin) == next.source) {
            copies.back().end = next.end;
        } else {
            copies.push_back(next);
        }
    };
    std::vector<const Weight*> order;
    for (const Weight& weight : weights_) {
        if (weight.slot == slot) {
            order.push_back(&weight);
        }
    }
    std::sort(order.begin(), order.end(), [](const Weight* a, const Weight* b) { return a->offset < b->offset; });
    for (const Weight* weight : order) {
        const uint64_t used = ggml_nbytes(weight->tensor);
        const uint64_t whole = ggml_backend_buft_get_alloc_size(type_, weight->tensor);
        add({plain ? all : weight->place, weight->offset, weight->offset + used,
             static_cast<const char*>(weight->tensor->data), !plain});
        if (whole > used) {
            // Some devices read a little behind a tensor, where there must be zeros.
            const auto* zeros = static_cast<const char*>(ggml_backend_buffer_get_base(zeros_.get()));
            copies.push_back({plain ? all : bytes_at(weight->offset + used, whole - used), weight->offset + used,
                              weight->offset + whole, zeros, !plain});
        }
    }
    return copies;
}

// --- addresses -------------------------------------------------------------------------------------------------------

void Arena::bind(bool again) {
    for (Weight& weight : weights_) {
        if (!again) {
            weight.host = *weight.tensor;
        }
        if (!weight.borrows) {
            weight.lie_at(*weight.place);
        }
    }
}

void Arena::unbind() {
    for (const Weight& weight : weights_) {
        weight.lie_at(weight.host);
    }
}

// Tells whether what a graph holds in the compute buffer leaves the slots free.
bool Arena::is_free_as_planned(ggml_cgraph* graph, ggml_backend_buffer_t buffer, const Scan& scan) const {
    const std::vector<int64_t>& offsets = scan.use->offsets;
    const char* const base = static_cast<const char*>(ggml_backend_buffer_get_base(buffer));
    const auto nodes = static_cast<size_t>(graph->n_nodes);
    bool as_measured = true;
    for (size_t i = 0; i < nodes; ++i) {
        as_measured = as_measured && (offsets[i] < 0 || root(graph->nodes[i])->data == base + offsets[i]);
    }
    if (as_measured) {
        return true;
    }
    // It was laid out for another graph; what counts is whether the slots are free.
    ComputeUse real;
    note_use(graph, type_, buffer, real);
    for (size_t segment = 0, i = 0; i < nodes; ++i) {
        while (segment + 1 < scan.begin.size() && scan.begin[segment + 1] <= static_cast<int>(i)) {
            ++segment;
        }
        if (real.heights[i] > scan.segments[segment].height) {
            return false;
        }
    }
    return true;
}

bool Arena::borrow(ggml_cgraph* graph, const Scan& scan) {
    const std::vector<int64_t>& offsets = scan.use->offsets;
    const auto first = static_cast<size_t>(
        std::find_if(offsets.begin(), offsets.end(), [](int64_t offset) { return offset >= 0; }) - offsets.begin());
    if (first >= static_cast<size_t>(graph->n_nodes)) {
        return false;
    }
    ggml_backend_buffer_t buffer = root(graph->nodes[first])->buffer;
    if (plan_.borrowed_end() > ggml_backend_buffer_get_size(buffer) || !is_free_as_planned(graph, buffer, scan)) {
        return false;
    }
    char* const base = static_cast<char*>(ggml_backend_buffer_get_base(buffer));
    borrowed_ = *buffer;
    borrowed_.usage = GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    ggml_context* const places = places_.get();
    for (ggml_tensor* t = ggml_get_first_tensor(places); t != nullptr; t = ggml_get_next_tensor(places, t)) {
        if (t->buffer == &borrowed_) {
            t->data = base + (static_cast<char*>(t->data) - base_);
        }
    }
    base_ = base;
    for (const Weight& weight : weights_) {
        if (weight.borrows) {
            weight.lie_at(*weight.place);
        }
    }
    return true;
}

void Arena::end_borrowing() {
    for (const Weight& weight : weights_) {
        if (weight.borrows) {
            weight.lie_at(weight.host);
        }
    }
}

}  // namespace sdcpp
