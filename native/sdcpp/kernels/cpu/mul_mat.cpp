#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/product.h"

namespace sdcpp::cpu {

namespace {

// Products that are smaller than this in any direction cost more to pack than to compute.
constexpr int64_t worthy_rows = 4;
constexpr int64_t worthy_depth = 16;

// Tells whether the columns of all batches lie at one distance, and there is only one left operand for them.
bool is_one_batch(const ggml_tensor& left, const ggml_tensor& right, const ggml_tensor& result) {
    const auto even = [](const ggml_tensor& tensor) {
        const auto ne = tensor.ne;
        return (ne[2] == 1 || tensor.nb[2] == tensor.nb[1] * static_cast<size_t>(ne[1])) &&
               (ne[3] == 1 || tensor.nb[3] == tensor.nb[1] * static_cast<size_t>(ne[1] * ne[2]));
    };
    return left.ne[2] == 1 && left.ne[3] == 1 && even(right) && even(result);
}

bool takes(const ggml_tensor& node) {
    if (node.op != GGML_OP_MUL_MAT || node.type != GGML_TYPE_F32) {
        return false;
    }
    const ggml_tensor& left = *node.src[0];
    const ggml_tensor& right = *node.src[1];
    const bool plain_right = right.type == GGML_TYPE_F32 || right.type == GGML_TYPE_F16 || right.type == GGML_TYPE_BF16;
    const int64_t columns = is_one_batch(left, right, node) ? ggml_nrows(&right) : right.ne[1];
    return is_readable(left) && is_readable(right) && plain_right && left.ne[1] >= worthy_rows &&
           columns >= worthy_columns && left.ne[0] >= worthy_depth;
}

class MatrixProduct : public Operands {
public:
    explicit MatrixProduct(const ggml_tensor& node) : left(*node.src[0]), right(*node.src[1]), result(node) {
        shape = {left.ne[1], right.ne[1], left.ne[0], right.ne[2] * right.ne[3]};
        if (is_one_batch(left, right, result)) {
            shape.columns *= shape.batches;
            shape.batches = 1;
        }
        // Otherwise ggml rounds the input, which errs more than any sum.
        if (left.type == GGML_TYPE_F32 || right.type != GGML_TYPE_F32) {
            shape.numbers = exact_for(shape.depth);
        }
#ifdef SDCPP_KERNELS_BF16
        if (left.type == GGML_TYPE_BF16 && left.ne[0] % 2 == 0) {
            shape.numbers = Numbers::pairs;
        }
#endif
    }

    void pack_rows(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const override {
        pack_memory_rows(shape.numbers, panel, left.type, left_row(batch, row), left.nb[1], count, depth, deep);
    }

    void ask_rows(int64_t batch, int64_t row, int count, int64_t depth, int deep) const override {
        ask_memory_rows(left.type, left_row(batch, row), left.nb[1], count, depth, deep);
    }

    void pack_column(float* packed, int64_t batch, int64_t column, int64_t depth, int deep) const override {
        const char* const from = static_cast<const char*>(right.data) + batch % right.ne[2] * right.nb[2] +
                                 batch / right.ne[2] * right.nb[3] + column * right.nb[1];
        pack_memory_column(shape.numbers, packed, right.type, from, right.nb[1], depth, deep);
    }

    float* column_of(int64_t batch, int64_t column) const override {
        return reinterpret_cast<float*>(static_cast<char*>(result.data) + batch % result.ne[2] * result.nb[2] +
                                        batch / result.ne[2] * result.nb[3] + column * result.nb[1]);
    }

    Shape shape;

private:
    const char* left_row(int64_t batch, int64_t row) const {
        const int64_t second = batch % right.ne[2] / (right.ne[2] / left.ne[2]);
        const int64_t third = batch / right.ne[2] / (right.ne[3] / left.ne[3]);
        return static_cast<const char*>(left.data) + second * left.nb[2] + third * left.nb[3] + row * left.nb[1];
    }

    const ggml_tensor& left;
    const ggml_tensor& right;
    const ggml_tensor& result;
};

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const MatrixProduct product(node);
    product_compute(params, product.shape, product);
}

size_t work_size(const ggml_tensor& node, int threads) {
    return product_work_size(MatrixProduct(node).shape, threads);
}

}  // namespace

const Kernel matrix_product = {takes, compute, work_size};

}  // namespace sdcpp::cpu
