#include <algorithm>
#include <array>

#include "sdcpp/kernels/cuda/element_wise.cuh"

namespace sdcpp::cuda {

namespace {

bool one_of(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

// Puts a program together, node by node.
class Chain {
public:
    Chain(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) : context_(context), run_(graph, first) {}

    // Takes as many nodes as go together; returns whether there are any.
    bool collect() {
        if (!take_halves() && !add(*run_.first())) {
            return false;
        }
        for (const ggml_tensor* next = run_.next(); next != nullptr; next = run_.next()) {
            if (!reads_one_of_them(*next) || !add(*next)) {
                break;
            }
            run_.take();
        }
        return true;
    }
    // Takes a norm alone.
    bool collect_norm() {
        const ggml_op op = run_.first()->op;
        return (op == GGML_OP_NORM || op == GGML_OP_RMS_NORM) && add(*run_.first());
    }
    // Tells whether what was collected reads the halves of a sum, and nothing else does.
    bool has_halves() const { return halves_ == 2; }

    // Says where the values go; false: what was collected cannot be computed.
    bool arrange();
    // Computes what was arranged; returns how many nodes.
    int launch();

private:
    bool take_halves();
    bool add(const ggml_tensor& node);
    bool push(const ggml_tensor& node, const ggml_tensor* from, int64_t offset, bool linear, Source& source);
    bool half_of(const ggml_tensor& node, const ggml_tensor* half, Source& source);
    bool reads_one_of_them(const ggml_tensor& node) const;
    int step_of(const ggml_tensor* tensor) const;
    bool source(const ggml_tensor& node, const ggml_tensor* from, int64_t offset, Source& source);
    bool is_read_elsewhere(int step) const;
    bool has_rows() const { return program_.steps[0].op == Op::norm || program_.steps[0].op == Op::rms_norm; }
    bool write(int step);
    void keep(int step, bool wanted) {
        if (wanted && program_.steps[step].kept < 0) {
            program_.steps[step].kept = static_cast<int8_t>(program_.kept_count++);
        }
    }

    ggml_backend_cuda_context& context_;
    Run run_;
    Program program_ = {};
    bool fours_ = false;  // four values a thread
    int block_ = 0;
    size_t shared_ = 0;
    int halves_ = 0;
    // A sum whose halves are what is read, as those of a gated layer; it is not written.
    const ggml_tensor* halved_ = nullptr;
    std::array<const ggml_tensor*, most_steps> nodes_ = {};  // NULL: a half of the sum
    std::array<const ggml_tensor*, most_operands> read_ = {};
};

int Chain::step_of(const ggml_tensor* tensor) const {
    for (int i = 0; i < program_.step_count; ++i) {
        if (nodes_[i] != nullptr && nodes_[i] == unshaped(tensor)) {
            return i;
        }
    }
    return -1;
}

bool Chain::reads_one_of_them(const ggml_tensor& node) const {
    return std::any_of(node.src, node.src + 2,
                       [&](const ggml_tensor* from) { return from != nullptr && step_of(from) >= 0; });
}

// Makes a source of a tensor that a node reads, from a value of each row on.
bool Chain::source(const ggml_tensor& node, const ggml_tensor* from, int64_t offset, Source& source) {
    const int step = step_of(from);
    if (step >= 0) {
        source = static_cast<Source>(step);
        // What was rounded is not what the step computed.
        return offset == 0 && nodes_[step]->type == GGML_TYPE_F32 && ggml_nelements(from) == program_.count;
    }
    if (halved_ != nullptr && from->op == GGML_OP_VIEW && from->src[0] == halved_) {
        return half_of(node, from, source);
    }
    // What is a part of a step's values is not in memory yet.
    for (int i = 0; i < program_.step_count; ++i) {
        if (nodes_[i] != nullptr && share_bytes(from, nodes_[i])) {
            return false;
        }
    }
    return push(node, from, offset, offset == 0 && ggml_are_same_shape(from, &node) && ggml_is_contiguous(from), source);
}

// Adds an operand with a tensor's strides, from a value of it on.
bool Chain::push(const ggml_tensor& node, const ggml_tensor* from, int64_t offset, bool linear, Source& source) {
    if (!one_of(from->type) || program_.operand_count == most_operands) {
        return false;
    }
    const auto bytes = static_cast<int64_t>(ggml_type_size(from->type));
    Operand operand = {};
    operand.type = kept_of(context_).in_halves == from ? GGML_TYPE_F16 : from->type;
    operand.data = static_cast<const char*>(from->data) + offset * static_cast<int64_t>(ggml_type_size(operand.type));
    operand.linear = linear;
    bool in_fours = operand.type != GGML_TYPE_BF16 &&
                    reinterpret_cast<uintptr_t>(operand.data) % (4 * ggml_type_size(operand.type)) == 0;
    for (int i = 0; i < 4; ++i) {
        const bool same = from->ne[i] == 1 && node.ne[i] != 1;
        // Halves of rows are read with the strides of the whole.
        const bool wide_enough = from->ne[i] == node.ne[i] || (i == 0 && from->ne[0] == 2 * node.ne[0]);
        if (!same && !wide_enough) {
            return false;
        }
        operand.stride[i] = same || node.ne[i] == 1 ? 0 : static_cast<int64_t>(from->nb[i]) / bytes;
        in_fours = in_fours && (i == 0 ? operand.stride[0] == 1 : operand.stride[i] % 4 == 0);
    }
    // Rows that are transposed are read faster by ggml's copies.
    if (operand.stride[0] > 1) {
        return false;
    }
    operand.in_fours = in_fours;
    operand.ne0 = init_fastdiv_values(static_cast<uint64_t>(node.ne[0]));
    operand.ne1 = init_fastdiv_values(static_cast<uint64_t>(node.ne[1]));
    operand.ne2 = init_fastdiv_values(static_cast<uint64_t>(node.ne[2]));
    source = static_cast<Source>(~program_.operand_count);
    read_[program_.operand_count] = from;
    program_.operands[program_.operand_count++] = operand;
    return true;
}

// Begins with a sum of a tensor and a row whose halves alone are read: what reads them sums up, too.
bool Chain::take_halves() {
    const ggml_tensor* const sum = run_.first();
    const ggml_tensor* const next = run_.next();
    if (sum->op != GGML_OP_ADD || next == nullptr || next->op != GGML_OP_CONT || next->src[0]->op != GGML_OP_VIEW ||
        next->src[0]->src[0] != sum || sum->type != GGML_TYPE_F32 || sum->src[0]->type != GGML_TYPE_F32 ||
        sum->src[1]->type != GGML_TYPE_F32 || !ggml_are_same_shape(sum, sum->src[0]) ||
        !ggml_is_contiguous(sum->src[0]) || !ggml_is_vector(sum->src[1]) || sum->src[1]->ne[0] != sum->ne[0] ||
        uses_of(run_.graph(), sum) != 2 || (sum->flags & GGML_TENSOR_FLAG_OUTPUT) != 0 ||
        sum->ne[0] != 2 * next->ne[0]) {
        return false;
    }
    // Whoever reads the other half has to be among the steps.
    const Run before = run_;
    halved_ = sum;
    run_.take();
    if (add(*next)) {
        while (halves_ < 2 && run_.next() != nullptr && reads_one_of_them(*run_.next()) && add(*run_.next())) {
            run_.take();
        }
    }
    if (halves_ != 2) {
        run_ = before;
        program_ = {};
        halved_ = nullptr;
        halves_ = 0;
    }
    return halves_ == 2;
}

// Adds a step that sums up a half.
bool Chain::half_of(const ggml_tensor& node, const ggml_tensor* half, Source& source) {
    const ggml_tensor* const whole = halved_->src[0];
    const ggml_tensor* const row = halved_->src[1];
    const int64_t offset = static_cast<int64_t>((half->view_offs - halved_->view_offs) / sizeof(float));
    if (program_.step_count + 1 >= most_steps || half->nb[0] != sizeof(float) || half->nb[1] != whole->nb[1] ||
        half->nb[2] != whole->nb[2] || half->nb[3] != whole->nb[3] || !ggml_are_same_shape(half, &node) ||
        (offset != 0 && offset != half->ne[0]) ||
        uses_of(run_.graph(), half) != 1) {
        return false;
    }
    Step step = {Op::add, -1, none, none, 0.0f, 0.0f};
    if (!push(node, whole, offset, false, step.a) || !push(node, row, offset, false, step.b)) {
        return false;
    }
    source = static_cast<Source>(program_.step_count);
    program_.steps[program_.step_count] = step;
    nodes_[program_.step_count++] = nullptr;
    ++halves_;
    return true;
}

// Adds a step for a node; false: it cannot be one, and the program is as it was.
bool Chain::add(const ggml_tensor& node) {
    const bool first = program_.step_count == 0;
    const int64_t count = ggml_nelements(&node);
    const bool fits = first ? count > 0 && count < (int64_t{1} << 31) : count == program_.count;
    if (!fits || program_.step_count == most_steps || !one_of(node.type) || !ggml_is_contiguous(&node) ||
        ggml_is_quantized(node.src[0]->type)) {
        return false;
    }
    Step step = {Op::load, -1, none, none, 0.0f, 0.0f};
    const ggml_tensor* a = node.src[0];
    const ggml_tensor* b = nullptr;
    int64_t a_offset = 0;
    int64_t b_offset = 0;
    switch (node.op) {
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
            if (!first || a->type != GGML_TYPE_F32) {
                return false;
            }
            step.op = node.op == GGML_OP_NORM ? Op::norm : Op::rms_norm;
            program_.row = static_cast<int>(node.ne[0]);
            program_.eps = ggml_get_op_params_f32(&node, 0);
            break;
        case GGML_OP_ADD:
        case GGML_OP_SUB:
        case GGML_OP_MUL:
            step.op = node.op == GGML_OP_ADD ? Op::add : node.op == GGML_OP_SUB ? Op::sub : Op::mul;
            b = node.src[1];
            break;
        case GGML_OP_SCALE:
            step.op = Op::scale;
            step.p0 = ggml_get_op_params_f32(&node, 0);
            step.p1 = ggml_get_op_params_f32(&node, 1);
            break;
        case GGML_OP_CONT:
        case GGML_OP_CPY:
        case GGML_OP_DUP:
            // Copies may have another shape than what they copy.
            if (!ggml_are_same_shape(&node, a) && step_of(a) < 0) {
                return false;
            }
            break;
        case GGML_OP_REPEAT:
            break;
        case GGML_OP_UNARY:
            switch (ggml_get_unary_op(&node)) {
                case GGML_UNARY_OP_SILU:
                    step.op = Op::silu;
                    break;
                case GGML_UNARY_OP_GELU:
                    step.op = Op::gelu;
                    break;
                case GGML_UNARY_OP_GELU_QUICK:
                    step.op = Op::gelu_quick;
                    break;
                case GGML_UNARY_OP_GELU_ERF:
                    step.op = Op::gelu_erf;
                    break;
                case GGML_UNARY_OP_TANH:
                    step.op = Op::tanh;
                    break;
                case GGML_UNARY_OP_SIGMOID:
                    step.op = Op::sigmoid;
                    break;
                case GGML_UNARY_OP_RELU:
                    step.op = Op::relu;
                    break;
                default:
                    return false;
            }
            break;
        case GGML_OP_GLU: {
            const ggml_glu_op kind = ggml_get_glu_op(&node);
            if (kind != GGML_GLU_OP_SWIGLU && kind != GGML_GLU_OP_GEGLU) {
                return false;
            }
            step.op = kind == GGML_GLU_OP_SWIGLU ? Op::swiglu : Op::geglu;
            b = node.src[1] != nullptr ? node.src[1] : a;
            if (node.src[1] == nullptr) {
                const bool swapped = ggml_get_op_params_i32(&node, 1) != 0;
                (swapped ? a_offset : b_offset) = node.ne[0];
            }
            break;
        }
        default:
            return false;
    }
    const bool copies = step.op == Op::load;
    // What is computed is f32; only copies round.
    if (!copies &&
        (node.type != GGML_TYPE_F32 || a->type != GGML_TYPE_F32 || (b != nullptr && b->type != GGML_TYPE_F32))) {
        return false;
    }
    const Program before = program_;
    const int halves_before = halves_;
    program_.count = count;
    bool good = source(node, a, a_offset, step.a) && (b == nullptr || source(node, b, b_offset, step.b));
    // Steps that are for a half may have come between.
    if (good) {
        for (const Source from : {step.a, step.b}) {
            if (from >= 0 && from != none) {
                keep(from, from != program_.step_count - 1);
            }
        }
        program_.steps[program_.step_count] = step;
        nodes_[program_.step_count++] = &node;
        good = write(program_.step_count - 1);
    }
    if (!good) {
        program_ = before;
        halves_ = halves_before;
    }
    return good;
}

// Tells whether others than the steps read a step's values.
bool Chain::is_read_elsewhere(int step) const {
    const ggml_tensor* const node = nodes_[step];
    const ggml_cgraph* const graph = run_.graph();
    if (node == nullptr) {
        return false;
    }
    if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0 ||
        (node->view_src != nullptr && step_of(node->view_src) < 0 && uses_of(graph, node->view_src) != 1)) {
        return true;
    }
    int uses = 0;
    for (int i = step + 1; i < program_.step_count; ++i) {
        if (nodes_[i] == nullptr) {
            continue;
        }
        for (const ggml_tensor* from : {nodes_[i]->src[0], nodes_[i]->src[1]}) {
            if (from == nullptr || from == nodes_[i] || unshaped(from) != node) {
                continue;
            }
            for (const ggml_tensor* form = from; form != node; form = form->src[0]) {
                if (uses_of(graph, form) != 1) {
                    return true;
                }
            }
            ++uses;
        }
    }
    return uses_of(graph, node) != uses;
}

// Tells whether the values of a step can go where its node has them: nothing that is read lies there, other than value
// by value.
bool Chain::write(int step) {
    const ggml_tensor* const node = nodes_[step];
    for (int i = 0; i < program_.operand_count; ++i) {
        const bool in_place =
            program_.operands[i].linear && read_[i]->data == node->data && read_[i]->type == node->type;
        if (share_bytes(read_[i], node) && !in_place) {
            return false;
        }
    }
    return true;
}

bool Chain::arrange() {
    // A later operand may lie where the values of an earlier step would go: those that are written are few.
    for (int i = 0; i < program_.step_count; ++i) {
        const bool last = i == program_.step_count - 1;
        if (!last && !is_read_elsewhere(i)) {
            continue;
        }
        if (program_.result_count == most_results || !write(i)) {
            return false;
        }
        keep(i, !last);
        program_.results[program_.result_count++] = {nodes_[i]->data, nodes_[i]->type, i};
    }
    fours_ = true;
    for (int i = 0; i < program_.step_count; ++i) {
        fours_ = fours_ && (nodes_[i] == nullptr || nodes_[i]->ne[0] % 4 == 0);
    }
    for (int i = 0; i < program_.result_count; ++i) {
        fours_ = fours_ && reinterpret_cast<uintptr_t>(program_.results[i].data) % 16 == 0;
    }
    const int width = fours_ ? 4 : 1;
    block_ = threads;
    while (has_rows() && block_ > WARP_SIZE && program_.row <= block_ * width * 2) {
        block_ /= 2;
    }
    shared_ = static_cast<size_t>(program_.kept_count * block_ * width) * sizeof(float);
    return shared_ <= 32 << 10;
}

int Chain::launch() {
    // A product that comes next reads the values in the type of its weights.
    const ggml_tensor* const last = nodes_[program_.step_count - 1];
    const ggml_tensor* const next = run_.next();
    const ggml_type type =
        next != nullptr && last->type == GGML_TYPE_F32 && next->src[1] != nullptr && unshaped(next->src[1]) == last
            ? product_type(context_, *next)
            : GGML_TYPE_COUNT;
    const bool alone = run_.passes_on();
    if (type != GGML_TYPE_COUNT && (alone || program_.result_count < most_results)) {
        Result& result = program_.results[alone ? program_.result_count - 1 : program_.result_count++];
        result = {kept_of(context_).make(context_, last, type, run_.end()), type, program_.step_count - 1};
    }

    const auto go = [&](auto kernel, int64_t blocks) {
        kernel<<<static_cast<unsigned>(blocks), block_, shared_, context_.stream()>>>(program_);
    };
    const int64_t row_count = has_rows() ? program_.count / program_.row : 0;
    if (!has_rows()) {
        const int at_once = threads * (fours_ ? 4 : 1);
        go(fours_ ? compute_values<4> : compute_values<1>, (program_.count + at_once - 1) / at_once);
    } else if (program_.steps[0].op == Op::rms_norm) {
        go(fours_ ? compute_rows<4, true> : compute_rows<1, true>, row_count);
    } else {
        go(fours_ ? compute_rows<4, false> : compute_rows<1, false>, row_count);
    }
    CUDA_CHECK(cudaGetLastError());
    return run_.count();
}

}  // namespace

int element_wise(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    Chain chain(context, graph, first);
    if (chain.collect() && chain.arrange()) {
        return chain.launch();
    }
    // Where memory lies is no reason for norms to be summed up otherwise.
    Chain norm(context, graph, first);
    return norm.collect_norm() && norm.arrange() ? norm.launch() : 0;
}

bool reads_halves(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    Chain chain(context, graph, first);
    return chain.collect() && chain.has_halves() && chain.arrange();
}

}  // namespace sdcpp::cuda
