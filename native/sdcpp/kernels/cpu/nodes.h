// The nodes that we compute, a function each: one of another kind or shape is nobody's.
#pragma once

#include <optional>

#include "sdcpp/kernels/cpu/product.h"

namespace sdcpp::cpu {

// A product of matrices, GGML_OP_MUL_MAT: each row of the weights times each column of the input.
class MatrixProduct : public Operands {
public:
    // Tells whether a node is a product that is faster here than ggml's dot products.
    static bool takes(const ggml_tensor& node);
    explicit MatrixProduct(const ggml_tensor& node);
    void pack_rows(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const override;
    void pack_column(float* packed, int64_t batch, int64_t column, int64_t depth, int deep) const override;
    float* column_of(int64_t batch, int64_t column) const override;

    Shape shape;

private:
    const ggml_tensor& left;
    const ggml_tensor& right;
    const ggml_tensor& result;
};

// A convolution, GGML_OP_CONV_2D, as a product of the windows of the picture (a row for each pixel of the result) and the
// filters (a column each): the windows are packed from the picture itself.
class Convolution : public Operands {
public:
    static bool takes(const ggml_tensor& node);
    explicit Convolution(const ggml_tensor& node);
    void pack_rows(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const override;
    void pack_column(float* packed, int64_t batch, int64_t column, int64_t depth, int deep) const override;
    float* column_of(int64_t batch, int64_t column) const override;

    Shape shape;

private:
    const ggml_tensor& filters;
    const ggml_tensor& picture;
    const ggml_tensor& result;
    int64_t stride_x, stride_y;
    int64_t pad_x, pad_y;
    int64_t dilation_x, dilation_y;
};

}  // namespace sdcpp::cpu
