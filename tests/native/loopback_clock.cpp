#include "loopback_clock.h"

#include <algorithm>
#include <cmath>

#include "loopback.h"

namespace loopback {

Time to_time(double seconds) {
    return static_cast<Time>(std::llround(seconds * static_cast<double>(SECOND)));
}

double to_seconds(Time time) {
    return static_cast<double>(time) / static_cast<double>(SECOND);
}

Engine::Interval Engine::reserve(Time ready, Time duration, Time host_now) {
    intervals_.erase(intervals_.begin(),
                     std::find_if(intervals_.begin(), intervals_.end(),
                                  [&](const Interval& interval) { return interval.end > host_now; }));
    // The engine takes whatever is ready, so an operation that waits for an event does not hold up one that does not.
    Time begin = ready;
    auto place = intervals_.begin();
    for (; place != intervals_.end(); ++place) {
        if (begin + duration <= place->begin) {
            break;
        }
        begin = std::max(begin, place->end);
    }
    const Interval result{begin, begin + duration};
    busy_time_ += duration;
    if (duration > 0) {
        place = intervals_.insert(place, result);
        auto next = place + 1;
        if (next != intervals_.end() && place->end == next->begin) {
            place->end = next->end;
            place = intervals_.erase(next) - 1;
        }
        if (place != intervals_.begin() && (place - 1)->end == place->begin) {
            (place - 1)->end = place->end;
            intervals_.erase(place);
        }
    }
    return result;
}

Time Engine::overlap(const Interval& interval) const {
    Time sum = 0;
    for (const Interval& other : intervals_) {
        sum += std::max<Time>(0, std::min(interval.end, other.end) - std::max(interval.begin, other.begin));
    }
    return sum;
}

void Engine::reset() {
    intervals_.clear();
    busy_time_ = 0;
}

bool is_view_op(const ggml_tensor* node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        default:
            return ggml_is_empty(node);
    }
}

bool reads_source(const ggml_tensor* node, int source) {
    switch (node->op) {
        case GGML_OP_IM2COL:
        case GGML_OP_IM2COL_3D:
            return source != 0;  // the kernel, for its shape
        case GGML_OP_CPY:
            return source != 1;  // the destination
        case GGML_OP_SET_ROWS:
            return source != 2;  // the destination
        default:
            return true;
    }
}

double op_flops(const ggml_tensor* node) {
    const ggml_tensor* a = node->src[0];
    const ggml_tensor* b = node->src[1];
    const double outputs = static_cast<double>(ggml_nelements(node));
    switch (node->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return 2.0 * static_cast<double>(a->ne[0]) * outputs;
        case GGML_OP_OUT_PROD:
            return 2.0 * static_cast<double>(a->ne[1]) * outputs;
        case GGML_OP_CONV_2D:  // kernel: width, height, input channels, output channels
            return 2.0 * static_cast<double>(a->ne[0] * a->ne[1] * a->ne[2]) * outputs;
        case GGML_OP_CONV_2D_DW:
            return 2.0 * static_cast<double>(a->ne[0] * a->ne[1]) * outputs;
        case GGML_OP_CONV_3D: {  // kernel: width, height, depth, input channels * output channels
            const int32_t channels = node->op_params[9];
            return 2.0 * static_cast<double>(a->ne[0] * a->ne[1] * a->ne[2]) * channels * outputs;
        }
        case GGML_OP_CONV_TRANSPOSE_1D:  // kernel: width, output channels, input channels
            return 2.0 * static_cast<double>(ggml_nelements(a)) * static_cast<double>(b->ne[0]);
        case GGML_OP_CONV_TRANSPOSE_2D:  // kernel: width, height, output channels, input channels
            return 2.0 * static_cast<double>(a->ne[0] * a->ne[1] * a->ne[2]) * static_cast<double>(ggml_nelements(b));
        case GGML_OP_FLASH_ATTN_EXT: {  // q: head size, queries, heads, batch; k and v: head size, keys, ...
            const ggml_tensor* v = node->src[2];
            const double pairs = static_cast<double>(a->ne[1] * b->ne[1] * a->ne[2] * a->ne[3]);
            return 2.0 * pairs * static_cast<double>(b->ne[0] + v->ne[0]);
        }
        default:
            return 0;
    }
}

// Bytes of the elements of a tensor; unlike ggml_nbytes() without the gaps of a strided view.
static double element_bytes(const ggml_tensor* tensor) {
    return static_cast<double>(ggml_row_size(tensor->type, tensor->ne[0])) * static_cast<double>(ggml_nrows(tensor));
}

double op_bytes(const ggml_tensor* node) {
    if (node->op == GGML_OP_GET_ROWS) {  // only the rows that are asked for
        const double rows = static_cast<double>(ggml_nrows(node));
        return element_bytes(node) + element_bytes(node->src[1]) +
               rows * static_cast<double>(ggml_row_size(node->src[0]->type, node->src[0]->ne[0]));
    }
    if (node->op == GGML_OP_SET_ROWS) {
        const double rows = static_cast<double>(ggml_nrows(node->src[0]));
        return element_bytes(node->src[0]) + element_bytes(node->src[1]) +
               rows * static_cast<double>(ggml_row_size(node->type, node->ne[0]));
    }
    double bytes = element_bytes(node);
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (node->src[i] != nullptr && reads_source(node, i)) {
            bytes += element_bytes(node->src[i]);
        }
    }
    return bytes;
}

void add_op(const loopback_config& config, const ggml_tensor* node, loopback_cost& cost) {
    const double flops = op_flops(node);
    if (flops > 0) {
        cost.flops += flops;
        cost.seconds += flops / config.flop_rate;
    } else {
        const double bytes = op_bytes(node);
        cost.bytes += bytes;
        cost.seconds += bytes / config.memory_bandwidth;
    }
    cost.seconds += config.op_latency;
    cost.ops++;
}

}  // namespace loopback
