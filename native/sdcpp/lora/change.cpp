#include "sdcpp/lora/change.h"

#include <cmath>
#include <utility>

namespace {

using sdcpp::Factor;
using sdcpp::Factors;
using sdcpp::Form;
using sdcpp::Kind;
using sdcpp::Role;

const Factor* get(const Factors& factors, Role role) {
    const auto found = factors.find(role);
    return found == factors.end() ? nullptr : &found->second;
}

ggml_tensor* f32(ggml_context* ctx, ggml_tensor* tensor) {
    return tensor->type == GGML_TYPE_F32 ? tensor : ggml_cast(ctx, tensor, GGML_TYPE_F32);
}

ggml_tensor* f32_matrix(ggml_context* ctx, const Factor& factor) {
    return f32(ctx, sdcpp::matrix_of(ctx, factor));
}

ggml_tensor* turned(ggml_context* ctx, ggml_tensor* matrix) {
    return ggml_cont(ctx, ggml_transpose(ctx, matrix));
}

// Returns a x b of a [rows, rank] and b [rank, columns] in the file's order.
ggml_tensor* product(ggml_context* ctx, const Factor& a, const Factor& b) {
    return ggml_mul_mat(ctx, turned(ctx, f32_matrix(ctx, b)), f32_matrix(ctx, a));
}

// Returns sum over i and j of core[i, j, k] outer[i, row] inner[j, input], as rows of (input, k); the kernel is k.
// core is [i, j, kernel...] in the file's order, outer and inner are [i, rows] and [inputs, j] in ggml's.
ggml_tensor* tucker(ggml_context* ctx, const Factor& core, ggml_tensor* outer, ggml_tensor* inner) {
    const int64_t j = core.tensor->ne[core.dims - 2];
    const int64_t i = core.first();
    const int64_t kernel = core.rest() / j;
    const int64_t inputs = inner->ne[0];
    ggml_tensor* by_kernel = ggml_reshape_3d(ctx, f32(ctx, core.tensor), kernel, j, i);
    by_kernel = ggml_cont(ctx, ggml_permute(ctx, by_kernel, 1, 0, 2, 3));  // [j, kernel, i]
    by_kernel = ggml_reshape_2d(ctx, by_kernel, j, kernel * i);
    ggml_tensor* inputs_first = ggml_mul_mat(ctx, by_kernel, turned(ctx, inner));  // [kernel, i, inputs]
    inputs_first = ggml_reshape_3d(ctx, inputs_first, kernel, i, inputs);
    inputs_first = ggml_cont(ctx, ggml_permute(ctx, inputs_first, 1, 0, 2, 3));  // [i, kernel, inputs]
    return ggml_mul_mat(ctx, ggml_reshape_2d(ctx, inputs_first, i, kernel * inputs), outer);
}

// Returns one half of a LoHa, whose factors are transposed when it has a core.
ggml_tensor* hadamard_half(ggml_context* ctx, const Factors& factors, Role a, Role b, Role core) {
    if (const Factor* t = get(factors, core)) {
        return tucker(ctx, *t, turned(ctx, f32_matrix(ctx, factors.at(a))), f32_matrix(ctx, factors.at(b)));
    }
    return product(ctx, factors.at(a), factors.at(b));
}

// Returns one factor of a Kronecker product as a matrix.
ggml_tensor* kronecker_factor(ggml_context* ctx, const Factors& factors, Role whole, Role a, Role b) {
    if (const Factor* factor = get(factors, whole)) {
        return f32_matrix(ctx, *factor);
    }
    const Factor* core = whole == Role::kron_2 ? get(factors, Role::kron_2t) : nullptr;
    if (core != nullptr) {
        return tucker(ctx, *core, turned(ctx, f32_matrix(ctx, factors.at(a))), f32_matrix(ctx, factors.at(b)));
    }
    return product(ctx, factors.at(a), factors.at(b));
}

// Rows and columns of a product, or of one half or factor of a change; no rows: it is incomplete or does not fit.
struct Size {
    int64_t rows = 0;
    int64_t columns = 0;
    int64_t rank = 0;
};

Size product_size(const Factor* a, const Factor* b) {
    if (a == nullptr || b == nullptr || a->rest() != b->first()) {
        return {};
    }
    return {a->first(), b->rest(), b->first()};
}

// outer_first: outer's first dimension are the outputs, as in lora_up; else it is its rank.
Size tucker_size(const Factor& core, const Factor* outer, const Factor* inner, bool outer_first) {
    if (core.dims < 3 || outer == nullptr || inner == nullptr) {
        return {};
    }
    const int64_t j = core.tensor->ne[core.dims - 2];
    const int64_t outer_rank = outer_first ? outer->rest() : outer->first();
    if (outer_rank != core.first() || inner->first() != j) {
        return {};
    }
    return {outer_first ? outer->first() : outer->rest(), inner->rest() * (core.rest() / j), inner->first()};
}

Size low_rank_size(const Factors& factors) {
    const Factor* core = get(factors, Role::mid);
    const Factor* up = get(factors, Role::up);
    const Factor* down = get(factors, Role::down);
    return core != nullptr ? tucker_size(*core, up, down, true) : product_size(up, down);
}

Size hadamard_size(const Factors& factors) {
    const auto half = [&](Role a, Role b, Role t) {
        const Factor* core = get(factors, t);
        return core != nullptr ? tucker_size(*core, get(factors, a), get(factors, b), false)
                               : product_size(get(factors, a), get(factors, b));
    };
    const Size one = half(Role::hada_1a, Role::hada_1b, Role::hada_1t);
    const Size two = half(Role::hada_2a, Role::hada_2b, Role::hada_2t);
    return one.rows == two.rows && one.columns == two.columns ? one : Size{};
}

Size kronecker_size(const Factors& factors) {
    const auto factor = [&](Role whole, Role a, Role b) {
        if (const Factor* given = get(factors, whole)) {
            return Size{given->first(), given->rest(), 0};
        }
        const Factor* core = whole == Role::kron_2 ? get(factors, Role::kron_2t) : nullptr;
        return core != nullptr ? tucker_size(*core, get(factors, a), get(factors, b), false)
                               : product_size(get(factors, a), get(factors, b));
    };
    const Size one = factor(Role::kron_1, Role::kron_1a, Role::kron_1b);
    const Size two = factor(Role::kron_2, Role::kron_2a, Role::kron_2b);
    // Where both are decomposed their rank is the same; where none is there is nothing to divide alpha by.
    return {one.rows * two.rows, one.columns * two.columns, two.rank != 0 ? two.rank : one.rank};
}

bool any(const Factors& factors, Role first, Role last) {
    const auto found = factors.lower_bound(first);
    return found != factors.end() && found->first <= last;
}

}  // namespace

namespace sdcpp {

ggml_tensor* matrix_of(ggml_context* ctx, const Factor& factor) {
    return ggml_reshape_2d(ctx, factor.tensor, factor.rest(), factor.first());
}

Form form_of(const Factors& factors) {
    Form form;
    Size size;
    if (any(factors, Role::down, Role::up)) {
        form.kind = Kind::low_rank;
        size = low_rank_size(factors);
    } else if (any(factors, Role::hada_1a, Role::hada_2t)) {
        form.kind = Kind::hadamard;
        size = hadamard_size(factors);
    } else if (any(factors, Role::kron_1, Role::kron_2t)) {
        form.kind = Kind::kronecker;
        size = kronecker_size(factors);
    } else if (const Factor* diff = get(factors, Role::diff)) {
        form.kind = Kind::difference;
        size = {diff->first(), diff->rest(), 0};
    }
    form.rows = size.rows;
    form.columns = size.columns;
    if (form.kind == Kind::none || size.rows == 0 || size.columns == 0) {
        form.problem =
            form.kind == Kind::none ? "no change that is known" : "factors are missing or do not fit together";
        form.kind = Kind::none;
        return form;
    }
    const auto scalar = [&](const Factor* factor) { return *static_cast<const float*>(factor->tensor->data); };
    if (const Factor* scale = get(factors, Role::scale)) {
        form.scale = scalar(scale);
    } else if (const Factor* alpha = get(factors, Role::alpha); alpha != nullptr && size.rank > 0) {
        form.scale = scalar(alpha) / static_cast<float>(size.rank);
    }
    for (const Role role : {Role::scale, Role::alpha}) {
        if (const Factor* factor = get(factors, role); factor != nullptr && ggml_nelements(factor->tensor) != 1) {
            form.problem = "its alpha is no single number";
            form.kind = Kind::none;
        }
    }
    if (!std::isfinite(form.scale)) {
        form.problem = "its scale is not finite";
        form.kind = Kind::none;
    }
    return form;
}

ggml_tensor* change_graph(ggml_context* ctx, const Factors& factors, Kind kind) {
    switch (kind) {
        case Kind::low_rank: {
            const Factor& up = factors.at(Role::up);
            const Factor& down = factors.at(Role::down);
            if (const Factor* core = get(factors, Role::mid)) {
                return tucker(ctx, *core, f32_matrix(ctx, up), f32_matrix(ctx, down));
            }
            return product(ctx, up, down);
        }
        case Kind::hadamard:
            return ggml_mul(ctx, hadamard_half(ctx, factors, Role::hada_1a, Role::hada_1b, Role::hada_1t),
                            hadamard_half(ctx, factors, Role::hada_2a, Role::hada_2b, Role::hada_2t));
        case Kind::kronecker: {
            ggml_tensor* one = kronecker_factor(ctx, factors, Role::kron_1, Role::kron_1a, Role::kron_1b);
            ggml_tensor* two = kronecker_factor(ctx, factors, Role::kron_2, Role::kron_2a, Role::kron_2b);
            const int64_t rows = one->ne[1] * two->ne[1];
            const int64_t columns = one->ne[0] * two->ne[0];
            ggml_tensor* whole = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, two->ne[0], one->ne[0], two->ne[1], one->ne[1]);
            ggml_tensor* many = ggml_repeat(ctx, ggml_reshape_4d(ctx, two, two->ne[0], 1, two->ne[1], 1), whole);
            ggml_tensor* by = ggml_reshape_4d(ctx, one, 1, one->ne[0], 1, one->ne[1]);
            return ggml_reshape_2d(ctx, ggml_mul(ctx, many, by), columns, rows);
        }
        case Kind::difference:
            return f32_matrix(ctx, factors.at(Role::diff));
        case Kind::none:
            break;
    }
    return nullptr;
}

ggml_tensor* change_product(ggml_context* ctx, const Factors& factors, Kind kind, ggml_tensor* x,
                            const Multiply& multiply) {
    if (kind == Kind::low_rank && factors.count(Role::mid) == 0) {
        return multiply(multiply(x, matrix_of(ctx, factors.at(Role::down))), matrix_of(ctx, factors.at(Role::up)));
    }
    if (kind != Kind::kronecker || factors.count(Role::kron_2t) != 0) {
        return multiply(x, change_graph(ctx, factors, kind));
    }
    // Rows and columns of a Kronecker product are counted by the first factor's, then by the second's.
    ggml_tensor* one = kronecker_factor(ctx, factors, Role::kron_1, Role::kron_1a, Role::kron_1b);
    const int64_t inputs = one->ne[0];
    const int64_t tokens = ggml_nelements(x) / x->ne[0];
    x = ggml_is_contiguous(x) ? x : ggml_cont(ctx, x);
    ggml_tensor* y = ggml_reshape_3d(ctx, x, x->ne[0] / inputs, inputs, tokens);
    if (const Factor* two = get(factors, Role::kron_2)) {
        y = multiply(y, matrix_of(ctx, *two));
    } else {
        y = multiply(y, matrix_of(ctx, factors.at(Role::kron_2b)));
        y = multiply(y, matrix_of(ctx, factors.at(Role::kron_2a)));
    }
    const int64_t inner = y->ne[0];
    y = ggml_cont(ctx, ggml_permute(ctx, ggml_reshape_3d(ctx, y, inner, inputs, tokens), 1, 0, 2, 3));
    y = multiply(y, one);  // [rows of one, rows of two, tokens]
    const int64_t outer = y->ne[0];
    y = ggml_cont(ctx, ggml_permute(ctx, ggml_reshape_3d(ctx, y, outer, inner, tokens), 1, 0, 2, 3));
    return ggml_reshape_4d(ctx, y, inner * outer, x->ne[1], x->ne[2], x->ne[3]);
}

}  // namespace sdcpp
