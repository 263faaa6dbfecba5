// Graphs give what the CPU backend gives, and dry ones nothing.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>
#include <vector>

#include "ggml-alloc.h"
#include "sdcpp/kernels/policy.h"
#include "test_loopback.h"

// --- graphs ----------------------------------------------------------------------------------------------------------

struct Model {
    ContextPtr weights = new_context(32);
    ContextPtr activations = new_context(256, 512);
    BufferPtr weight_buffer;
    BufferPtr activation_buffer;  // instead of the allocator: every tensor keeps its place
    AllocatorPtr allocator;
    std::vector<ggml_tensor*> inputs;
    std::vector<ggml_tensor*> outputs;
    ggml_cgraph* graph = nullptr;

    ggml_tensor* weight(ggml_type type, int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) {
        return ggml_new_tensor_4d(weights.get(), type, a, b, c, d);
    }
    ggml_tensor* input(ggml_type type, int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) {
        ggml_tensor* tensor = ggml_new_tensor_4d(activations.get(), type, a, b, c, d);
        ggml_set_input(tensor);
        inputs.push_back(tensor);
        return tensor;
    }
    void output(ggml_tensor* tensor) {
        ggml_set_output(tensor);
        outputs.push_back(tensor);
    }

    // Operations that image models use, in every way in which an operation can refer to memory.
    void build() {
        ggml_context* ctx = activations.get();
        ggml_tensor* image = input(GGML_TYPE_F32, 16, 16, 8, 1);
        ggml_tensor* ids = input(GGML_TYPE_I32, 5);
        ggml_tensor* tokens = input(GGML_TYPE_F32, 64, 24);
        ggml_tensor* positions = input(GGML_TYPE_I32, 24);

        // Convolutions: through im2col and direct; group norm; in-place operations; upscale; pad; concat.
        ggml_tensor* kernel = weight(GGML_TYPE_F16, 3, 3, 8, 32);
        ggml_tensor* x = ggml_conv_2d(ctx, kernel, image, 1, 1, 1, 1, 1, 1);
        x = ggml_add_inplace(ctx, x, ggml_reshape_4d(ctx, weight(GGML_TYPE_F32, 32), 1, 1, 32, 1));
        x = ggml_group_norm(ctx, x, 4, 1e-6f);
        x = ggml_silu_inplace(ctx, x);
        ggml_tensor* y = ggml_conv_2d_direct(ctx, kernel, image, 1, 1, 1, 1, 1, 1);
        x = ggml_concat(ctx, x, y, 2);
        x = ggml_upscale(ctx, x, 2, GGML_SCALE_MODE_NEAREST);
        x = ggml_pad(ctx, x, 1, 1, 0, 0);
        output(ggml_pool_2d(ctx, x, GGML_OP_POOL_AVG, 2, 2, 2, 2, 0, 0));

        // Attention by hand: views, permutations, copies, softmax; then flash attention.
        ggml_tensor* embedding = ggml_get_rows(ctx, weight(GGML_TYPE_Q8_0, 64, 100), ids);
        ggml_tensor* normed = ggml_mul(ctx, ggml_rms_norm(ctx, tokens, 1e-5f), weight(GGML_TYPE_F32, 64));
        ggml_tensor* qkv = ggml_mul_mat(ctx, weight(GGML_TYPE_F16, 64, 192), normed);
        auto part = [&](size_t index) {
            ggml_tensor* view = ggml_view_3d(ctx, qkv, 16, 4, 24, 16 * 4, qkv->nb[1], index * 64 * 4);
            view = ggml_rope(ctx, view, positions, 16, 0);
            return ggml_cont(ctx, ggml_permute(ctx, view, 0, 2, 1, 3));
        };
        ggml_tensor* q = part(0);
        ggml_tensor* k = part(1);
        ggml_tensor* v = part(2);
        ggml_tensor* scores = ggml_soft_max_inplace(ctx, ggml_scale_inplace(ctx, ggml_mul_mat(ctx, k, q), 0.25f));
        ggml_tensor* mixed = ggml_mul_mat(ctx, ggml_cont(ctx, ggml_transpose(ctx, v)), scores);
        mixed = ggml_cont_2d(ctx, ggml_permute(ctx, mixed, 0, 2, 1, 3), 64, 24);
        output(mixed);
        ggml_tensor* flash = ggml_flash_attn_ext(ctx, q, ggml_cast(ctx, k, GGML_TYPE_F16),
                                                 ggml_cast(ctx, v, GGML_TYPE_F16), nullptr, 0.25f, 0, 0);
        output(flash);

        // Results inside other tensors: copies into views, set, set_rows.
        ggml_tensor* cache = ggml_scale(ctx, tokens, 0.5f);
        ggml_tensor* place = ggml_view_2d(ctx, cache, 64, 5, cache->nb[1], 3 * cache->nb[1]);
        ggml_tensor* stored = ggml_cpy(ctx, embedding, place);
        ggml_tensor* rows = ggml_set_rows(ctx, cache, ggml_scale(ctx, embedding, 3.0f), ids);
        ggml_build_forward_expand(graph, stored);
        ggml_build_forward_expand(graph, rows);
        output(ggml_view_2d(ctx, rows, 32, 24, rows->nb[1], 0));
        output(ggml_set_2d(ctx, mixed, embedding, mixed->nb[1], 2 * mixed->nb[1]));

        // Feed-forward, quantised weights, the last view of which is an output.
        ggml_tensor* hidden = ggml_mul_mat(ctx, weight(GGML_TYPE_Q4_0, 64, 256), mixed);
        hidden = ggml_mul(ctx, ggml_gelu(ctx, ggml_view_2d(ctx, hidden, 128, 24, hidden->nb[1], 0)),
                          ggml_view_2d(ctx, hidden, 128, 24, hidden->nb[1], 128 * 4));
        output(ggml_norm(ctx, ggml_mul_mat(ctx, weight(GGML_TYPE_BF16, 128, 64), hidden), 1e-5f));
        ggml_tensor* timestep = ggml_timestep_embedding(ctx, input(GGML_TYPE_F32, 2), 64, 10000);
        output(ggml_mul_mat(ctx, weight(GGML_TYPE_F32, 64, 8), timestep));
    }

    explicit Model(ggml_backend_buffer_type_t type, bool reuse_memory = true) {
        graph = ggml_new_graph_custom(activations.get(), 512, false);
        build();
        for (ggml_tensor* tensor : outputs) {
            ggml_build_forward_expand(graph, tensor);
        }
        weight_buffer = allocate(weights.get(), type);
        ggml_backend_buffer_set_usage(weight_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        if (reuse_memory) {
            allocator.reset(ggml_gallocr_new(type));
            CHECK(ggml_gallocr_reserve(allocator.get(), graph));
        } else {
            activation_buffer = allocate(activations.get(), type);
        }
        uint32_t seed = 100;
        for (ggml_tensor* t = ggml_get_first_tensor(weights.get()); t != nullptr;
             t = ggml_get_next_tensor(weights.get(), t)) {
            fill_random(t, seed++);
        }
    }

    std::vector<std::vector<char>> run(ggml_backend_t backend, uint32_t seed) {
        CHECK(allocator == nullptr || ggml_gallocr_alloc_graph(allocator.get(), graph));
        for (ggml_tensor* tensor : inputs) {
            if (tensor->type == GGML_TYPE_I32) {
                std::vector<int32_t> values(static_cast<size_t>(ggml_nelements(tensor)));
                for (size_t i = 0; i < values.size(); i++) {
                    values[i] = static_cast<int32_t>((i * 7 + seed) % 24);
                }
                ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
            } else {
                fill_random(tensor, seed++);
            }
        }
        CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
        std::vector<std::vector<char>> result;
        for (ggml_tensor* tensor : outputs) {
            result.push_back(bytes_of(tensor));
        }
        return result;
    }
};

void test_graph_equals_cpu() {
    BackendPtr stream = new_stream();
    for (int threads : {1, 2, 3}) {
        set("threads", threads);
        BackendPtr cpu = new_cpu(threads);
        Model on_cpu(ggml_backend_cpu_buffer_type());
        Model on_device(device_type());
        for (uint32_t seed = 1; seed <= 2; seed++) {
            const auto expected = on_cpu.run(cpu.get(), seed);
            const auto found = on_device.run(stream.get(), seed);
            CHECK_EQUAL(expected.size(), found.size());
            for (size_t i = 0; i < expected.size(); i++) {
                CHECK(expected[i] == found[i]);
                const float* values = reinterpret_cast<const float*>(found[i].data());
                bool usable = true;
                for (size_t j = 0; j < found[i].size() / 4; j++) {
                    usable = usable && std::isfinite(values[j]);
                }
                CHECK(usable);
            }
        }
    }
    EXPECT_CLEAN();
    CHECK_EQUAL(books().graphs, 6);
}

static bool same_bytes(int, ggml_tensor* a, ggml_tensor* b, void* count) {
    (*static_cast<int*>(count))++;
    CHECK(bytes_of(a) == bytes_of(b));
    return true;
}

void test_graph_copied_by_ggml() {
    // ggml's own comparison copies the graph to the other backend and runs it node by node.
    set("check_uninitialised", 0);
    set("threads", 2);
    BackendPtr cpu = new_cpu(2);
    BackendPtr stream = new_stream();
    Model model(ggml_backend_cpu_buffer_type(), false);
    model.run(cpu.get(), 1);
    int count = 0;
    CHECK(ggml_backend_compare_graph_backend(cpu.get(), stream.get(), model.graph, same_bytes, &count, nullptr, 0));
    CHECK(count > 40);
    EXPECT_CLEAN();
}

void test_supported_operations() {
    ContextPtr context = new_context();
    ggml_tensor* a = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 64, 64);
    ggml_tensor* half = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 64, 64);
    CHECK(ggml_backend_dev_supports_op(device(), ggml_mul_mat(context.get(), half, a)));
    CHECK(!ggml_backend_dev_supports_op(
        device(), ggml_map_custom1(
                      context.get(), a, [](ggml_tensor*, const ggml_tensor*, int, int, void*) {}, 1, nullptr)));
    CHECK(!ggml_backend_dev_offload_op(device(), ggml_mul_mat(context.get(), half, a)));
}

void test_rebound_tensors() {
    // What the engine does with weights: exchange where a tensor of the host lies, compute, and exchange again. And
    // with the tensors between two segments: make them leaves that are views of a cache tensor without a buffer of
    // their own.
    Vector host(host_type(), 1024);
    fill_random(host.tensor, 19);
    BackendPtr stream = new_stream();
    ContextPtr context = new_context();
    ggml_tensor* doubled = ggml_add(context.get(), host.tensor, host.tensor);
    ggml_tensor* view = ggml_view_1d(context.get(), doubled, 512, 1024);
    ggml_tensor* result = ggml_add(context.get(), view, view);
    for (int i = 0; i < 4; i++) {
        result = ggml_scale(context.get(), result, 0.5f);
    }
    ggml_cgraph* first = ggml_new_graph_custom(context.get(), 4, false);
    ggml_cgraph* second = ggml_new_graph_custom(context.get(), 16, false);
    ggml_build_forward_expand(first, doubled);

    Vector copy(device_type(), 1024);
    ggml_backend_tensor_copy(host.tensor, copy.tensor);
    std::swap(host.tensor->buffer, copy.tensor->buffer);
    std::swap(host.tensor->data, copy.tensor->data);
    AllocatorPtr allocator(ggml_gallocr_new(device_type()));
    CHECK(ggml_gallocr_alloc_graph(allocator.get(), first));
    CHECK(ggml_backend_graph_compute(stream.get(), first) == GGML_STATUS_SUCCESS);
    Vector cache(device_type(), 1024);
    ggml_backend_tensor_copy(doubled, cache.tensor);
    std::swap(host.tensor->buffer, copy.tensor->buffer);
    std::swap(host.tensor->data, copy.tensor->data);
    copy.buffer.reset();

    view->view_src = cache.tensor;
    view->buffer = nullptr;
    view->data = static_cast<char*>(cache.tensor->data) + view->view_offs;
    std::fill(std::begin(view->src), std::end(view->src), nullptr);
    view->op = GGML_OP_NONE;
    ggml_build_forward_expand(second, result);
    AllocatorPtr other(ggml_gallocr_new(device_type()));
    CHECK(ggml_gallocr_alloc_graph(other.get(), second));
    CHECK(ggml_backend_graph_compute(stream.get(), second) == GGML_STATUS_SUCCESS);
    std::vector<float> values(512);
    ggml_backend_tensor_get(result, values.data(), 0, 2048);
    for (size_t i = 0; i < 512; i++) {
        CHECK(values[i] == 0.25f * host.floats()[256 + i]);
    }
    EXPECT_CLEAN();
}

void test_same_graphs() {
    Vector a(device_type(), 64);
    Vector b(device_type(), 64);
    Vector result(device_type(), 64);
    for (const Vector* vector : {&a, &b}) {
        const std::vector<float> values = random_floats(64, 3);
        ggml_backend_tensor_set(vector->tensor, values.data(), 0, 256);
    }
    Sum sum(a.tensor, b.tensor, result.tensor);
    BackendPtr stream = new_stream();
    ggml_backend_graph_compute(stream.get(), sum.graph);
    const sdcpp::SameGraphsScope same(true);
    ggml_backend_graph_compute(stream.get(), sum.graph);
    CHECK_EQUAL(books().same_graphs, 1);
    EXPECT_CLEAN();
    ggml_graph_node(sum.graph, 0)->src[1] = a.tensor;
    ggml_backend_graph_compute(stream.get(), sum.graph);
    EXPECT_VIOLATIONS(LOOPBACK_WRONG_GRAPH, 1);
    BackendPtr other = new_stream();
    ggml_backend_graph_compute(other.get(), sum.graph);
    EXPECT_VIOLATIONS(LOOPBACK_WRONG_GRAPH, 2);
}

// --- dry mode --------------------------------------------------------------------------------------------------------

void test_dry() {
    set_clock();
    set("dry", 1);
    set("memory_total", std::ldexp(1.0, 40));
    const int64_t columns = 1 << 14;
    const int64_t size = int64_t{1} << 34;  // 16 GiB, several times
    ContextPtr host_context = new_context();
    ContextPtr pageable_context = new_context();
    ContextPtr device_context = new_context();
    ggml_tensor* pinned = ggml_new_tensor_2d(host_context.get(), GGML_TYPE_F16, columns, size / 2 / columns);
    ggml_tensor* pageable = ggml_dup_tensor(pageable_context.get(), pinned);
    ggml_tensor* weight = ggml_dup_tensor(device_context.get(), pinned);
    ggml_tensor* input = ggml_new_tensor_2d(device_context.get(), GGML_TYPE_F32, columns, 16);
    ggml_tensor* product = ggml_mul_mat(device_context.get(), weight, input);
    ggml_cgraph* graph = ggml_new_graph_custom(device_context.get(), 4, false);
    ggml_build_forward_expand(graph, product);
    BufferPtr host_buffer = allocate(host_context.get(), host_type());
    BufferPtr pageable_buffer =
        allocate(pageable_context.get(), static_cast<ggml_backend_buffer_type_t>(call_loopback_pageable_buffer_type()));
    BufferPtr device_buffer = allocate(device_context.get(), device_type());
    CHECK(host_buffer != nullptr && pageable_buffer != nullptr && device_buffer != nullptr);
    CHECK(books().device_bytes > static_cast<uint64_t>(size));
    CHECK(ggml_backend_buffer_is_host(pageable_buffer.get()));

    BackendPtr stream = new_stream();
    ggml_backend_tensor_set(input, pageable->data, 0, ggml_nbytes(input));
    call_loopback_reset();
    ggml_backend_tensor_copy(pageable, weight);
    CHECK_EQUAL(the_clock().host_seconds, 64.0);
    ggml_backend_tensor_copy(pinned, weight);
    CHECK_EQUAL(the_clock().host_seconds, 80.0);
    CHECK(ggml_backend_graph_compute(stream.get(), graph) == GGML_STATUS_SUCCESS);
    CHECK_EQUAL(the_clock().host_seconds, 80.0 + static_cast<double>(size) * 16 / 1073741824.0);
    std::vector<float> result(16);
    ggml_backend_tensor_get(product, result.data(), 0, 64);
    EXPECT_CLEAN();
    ggml_backend_tensor_set_async(stream.get(), weight, pinned->data, 0, 1024);
    BackendPtr other = new_stream();
    ggml_backend_graph_compute(other.get(), graph);
    EXPECT_VIOLATIONS(LOOPBACK_READ_BEFORE_ARRIVAL, 1);  // order is checked all the same
    ggml_backend_synchronize(stream.get());

    long pages = 0;
    FILE* file = fopen("/proc/self/statm", "r");
    if (file != nullptr) {
        CHECK(fscanf(file, "%*d %ld", &pages) == 1);
        fclose(file);
        CHECK(pages * sysconf(_SC_PAGESIZE) < (4L << 30));
    }
}
