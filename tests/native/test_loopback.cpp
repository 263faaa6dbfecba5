// Self-test of the loopback accelerator: drives ggml directly, as the engine does.
//
//     test_loopback [--module FILE] [--cpu DIRECTORY] [--list | NAME...]
#include "test_loopback.h"

#include <utility>

// test_loopback_devices.cpp
void test_devices();
void test_options();
void test_blocking_copies();
void test_pinned_and_weights();
void test_memory_books();
void test_device_copies();
void test_asynchronous_copies();
// test_loopback_order.cpp
void test_order_kept();
void test_read_before_arrival();
void test_overwrite_in_use();
void test_free_in_use();
void test_source_changed();
void test_uninitialised();
void test_wrong_memory();
void test_events();
void test_many_streams();
void test_host_access();
void test_access_map();
// test_loopback_clock.cpp
void test_engine();
void test_clock_of_copies();
void test_clock_of_engines();
void test_clock_of_graphs();
void test_clock_of_streaming();
// test_loopback_faults.cpp
void test_refused_device_memory();
void test_refused_host_memory();
void test_refused_streams_and_events();
void test_buffer_limits();
// test_loopback_graphs.cpp
void test_graph_equals_cpu();
void test_graph_copied_by_ggml();
void test_supported_operations();
void test_rebound_tensors();
void test_same_graphs();
void test_dry();
// test_loopback_schedules.cpp
void test_schedules();
void test_threads();

static const std::pair<const char*, void (*)()> TESTS[] = {
    {"devices", test_devices},
    {"options", test_options},
    {"blocking_copies", test_blocking_copies},
    {"pinned_and_weights", test_pinned_and_weights},
    {"memory_books", test_memory_books},
    {"device_copies", test_device_copies},
    {"asynchronous_copies", test_asynchronous_copies},
    {"order_kept", test_order_kept},
    {"read_before_arrival", test_read_before_arrival},
    {"overwrite_in_use", test_overwrite_in_use},
    {"free_in_use", test_free_in_use},
    {"source_changed", test_source_changed},
    {"uninitialised", test_uninitialised},
    {"wrong_memory", test_wrong_memory},
    {"events", test_events},
    {"many_streams", test_many_streams},
    {"host_access", test_host_access},
    {"access_map", test_access_map},
    {"engine", test_engine},
    {"clock_of_copies", test_clock_of_copies},
    {"clock_of_engines", test_clock_of_engines},
    {"clock_of_graphs", test_clock_of_graphs},
    {"clock_of_streaming", test_clock_of_streaming},
    {"refused_device_memory", test_refused_device_memory},
    {"refused_host_memory", test_refused_host_memory},
    {"refused_streams_and_events", test_refused_streams_and_events},
    {"buffer_limits", test_buffer_limits},
    {"graph_equals_cpu", test_graph_equals_cpu},
    {"graph_copied_by_ggml", test_graph_copied_by_ggml},
    {"supported_operations", test_supported_operations},
    {"rebound_tensors", test_rebound_tensors},
    {"same_graphs", test_same_graphs},
    {"dry", test_dry},
    {"schedules", test_schedules},
    {"threads", test_threads},
};

int main(int argc, char** argv) {
    std::string module = LOOPBACK_MODULE;
    std::string cpu = LOOPBACK_CPU_DIRECTORY;
    std::vector<std::string> wanted;
    for (int i = 1; i < argc; i++) {
        const std::string argument = argv[i];
        if (argument == "--module" && i + 1 < argc) {
            module = argv[++i];
        } else if (argument == "--cpu" && i + 1 < argc) {
            cpu = argv[++i];
        } else if (argument == "--list") {
            for (const auto& [name, function] : TESTS) {
                puts(name);
            }
            return 0;
        } else {
            wanted.push_back(argument);
        }
    }
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);  // refusals are wanted here
    ggml_backend_load_all_from_path(cpu.c_str());
    loopback_registry = ggml_backend_load(module.c_str());
    if (loopback_registry == nullptr || ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        fprintf(stderr, "cannot load %s and a CPU backend from %s\n", module.c_str(), cpu.c_str());
        return 2;
    }
    size_t done = 0;
    for (const auto& [name, function] : TESTS) {
        bool chosen = wanted.empty();
        for (const std::string& one : wanted) {
            chosen = chosen || one == name;
        }
        if (!chosen) {
            continue;
        }
        loopback_config config;
        call_loopback_config_default(&config);
        call_loopback_config_set(-1, &config);
        call_loopback_reset();
        const int before = failures;
        function();
        const loopback_books left = books(-1);
        CHECK_EQUAL(left.device_bytes, 0);
        CHECK_EQUAL(left.host_bytes, 0);
        CHECK_EQUAL(left.streams_live, 0);
        CHECK_EQUAL(left.events_live, 0);
        printf("%s %s\n", failures == before ? "ok  " : "FAIL", name);
        fflush(stdout);
        done++;
    }
    if (done < wanted.size()) {
        fprintf(stderr, "unknown test\n");
        return 2;
    }
    return failures == 0 ? 0 : 1;
}
