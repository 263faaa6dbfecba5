// Lets a thread of a team come late to what the others compute, and tells what it computed. Part of the engine library
// in test builds only.
#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "ggml-cpp.h"
#include "ggml-cpu/ggml-cpu-impl.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/threads/pieces.h"
#include "sdcpp/threads/team.h"

namespace {

constexpr int nodes = 6;
constexpr int late_node = 2;
constexpr size_t piece_bytes = 256;

// What the threads have done of the graph; one at a time.
struct Course {
    std::string when;
    int threads;
    std::atomic<int> begun[nodes];     // parts of a node
    std::atomic<int> finished[nodes];  // likewise
    std::atomic<int> parts[nodes];     // of which a node has so many
    std::atomic<int> nodes_left;       // by the thread that called
    std::atomic<bool> held;            // the late thread holds a part
    std::atomic<int> late_parts;       // that the late thread computed
    std::atomic<bool> in_order;        // no part was begun before the last node was finished
    std::atomic<bool> bound;           // a thread may not use the processors any more that it might before
};

Course course;
thread_local bool late = false;

template <typename F>
void until(F&& holds) {
    while (!holds()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

int number_of(const ggml_tensor* node) {
    return node->op_params[0];
}

void compute(ggml_compute_params* params, ggml_tensor* node) {
    const int number = number_of(node);
    course.parts[number] = params->nth;
    if (number > 0 && course.finished[number - 1] != course.parts[number - 1]) {
        course.in_order = false;
    }
    ++course.begun[number];
    course.late_parts += late ? 1 : 0;
    if (course.when == "within" && number == late_node) {
        // The late thread does what it has taken when the others have done all the rest.
        if (late && !course.held.exchange(true)) {
            until([&] { return course.finished[number] == params->nth - 1; });
            // And they look for it.
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        } else if (!late) {
            until([] { return course.held.load(); });
        }
    }
    ++course.finished[number];
}

#ifdef __linux__
cpu_set_t processors() {
    cpu_set_t set;
    sched_getaffinity(0, sizeof(set), &set);
    return set;
}
#endif

void work(sdcpp_team* team, const std::vector<ggml_tensor*>& graph, int ith) {
#ifdef __linux__
    const cpu_set_t before = processors();
#endif
    late = ith == course.threads - 1;
    if (late && course.when == "after") {
        until([] { return course.nodes_left == nodes; });
    } else if (late && course.when == "before") {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    sdcpp_team_enter(team);
    for (ggml_tensor* node : graph) {
        ggml_compute_params params = {};
        params.ith = ith;
        params.nth = course.threads;
        sdcpp_team_compute(team, compute, &params, node);
        sdcpp_team_meet(team);
        course.nodes_left += ith == 0 ? 1 : 0;
    }
    sdcpp_team_leave(team, ith == 0);
#ifdef __linux__
    const cpu_set_t now = processors();
    if (CPU_EQUAL(&before, &now) == 0) {
        course.bound = true;
    }
#endif
}

}  // namespace

extern "C" {

struct sdcpp_probe_late {
    int late_parts;  // that the late thread computed
    int in_order;    // no node was begun before the one before was computed
    int complete;    // each part was computed once
    int bound;       // a thread may use other processors than before
};

// Computes nodes with a thread that comes after all of them were computed, before that but after others have begun, or
// late to the end of what it has taken within one; whole ones are not divided into pieces.
SD_API void sdcpp_probe_late(const char* when, int threads, int whole, sdcpp_probe_late* found) {
    ggml_context_ptr ctx(ggml_init({32 * ggml_tensor_overhead(), nullptr, true}));
    ggml_tensor* const values = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 64);
    std::vector<ggml_tensor*> graph;
    for (int i = 0; i < nodes; ++i) {
        graph.push_back(whole != 0 ? ggml_mul_mat(ctx.get(), values, values) : ggml_add(ctx.get(), values, values));
        graph.back()->op_params[0] = i;
        course.begun[i] = course.finished[i] = course.parts[i] = 0;
    }
    course.when = when;
    course.threads = threads;
    course.nodes_left = course.late_parts = 0;
    course.held = course.bound = false;
    course.in_order = true;
    sdcpp_piece_bytes_set(piece_bytes);
    sdcpp_team* const team = sdcpp_team_new();
    sdcpp_team_begin(team, threads);
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) {
        others.emplace_back([&, i] { work(team, graph, i); });
    }
    work(team, graph, 0);
    for (std::thread& other : others) {
        other.join();
    }
    sdcpp_team_free(team);
    sdcpp_piece_bytes_set(0);
    *found = {course.late_parts, course.in_order, 1, course.bound};
    for (int i = 0; i < nodes; ++i) {
        found->complete &= course.finished[i] == course.parts[i] && course.begun[i] == course.parts[i];
    }
}

}  // extern "C"
