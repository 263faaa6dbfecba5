#include "loopback_config.h"

#include <cctype>
#include <cstdlib>
#include <thread>

namespace loopback {

namespace {

struct Option {
    const char* name;
    int64_t loopback_config::*integer;
    double loopback_config::*real;
    double fallback;
};

constexpr double GIB = 1024.0 * 1024.0 * 1024.0;

// The speeds are those of a mid-range card in a PCIe 4.0 x16 slot, with pageable copies at 40 % of pinned ones.
const Option OPTIONS[] = {
    {"memory_total", &loopback_config::memory_total, nullptr, 12 * GIB},
    {"memory_reserved", &loopback_config::memory_reserved, nullptr, 0},
    {"max_buffer_size", &loopback_config::max_buffer_size, nullptr, 0},
    {"host_memory_total", &loopback_config::host_memory_total, nullptr, -1},
    {"quantized_row_padding", &loopback_config::quantized_row_padding, nullptr, 0},
    {"refuse_device_alloc", &loopback_config::refuse_device_alloc, nullptr, 0},
    {"refuse_device_alloc_count", &loopback_config::refuse_device_alloc_count, nullptr, 1},
    {"refuse_host_alloc", &loopback_config::refuse_host_alloc, nullptr, 0},
    {"refuse_host_alloc_count", &loopback_config::refuse_host_alloc_count, nullptr, 1},
    {"refuse_event", &loopback_config::refuse_event, nullptr, 0},
    {"refuse_event_count", &loopback_config::refuse_event_count, nullptr, 1},
    {"throw_at_graph", &loopback_config::throw_at_graph, nullptr, 0},
    {"sick", &loopback_config::sick, nullptr, 0},
    {"max_streams", &loopback_config::max_streams, nullptr, 0},
    {"host_buffer", &loopback_config::host_buffer, nullptr, 1},
    {"host_fallback", &loopback_config::host_fallback, nullptr, 1},
    {"host_lock", &loopback_config::host_lock, nullptr, 1},
    {"lock_pages", &loopback_config::lock_pages, nullptr, 0},
    {"async", &loopback_config::async, nullptr, 1},
    {"events", &loopback_config::events, nullptr, 1},
    {"strict", &loopback_config::strict, nullptr, 0},
    {"dry", &loopback_config::dry, nullptr, 0},
    {"poison", &loopback_config::poison, nullptr, 1},
    {"check_uninitialised", &loopback_config::check_uninitialised, nullptr, 1},
    {"check_sources", &loopback_config::check_sources, nullptr, 1},
    {"defer_downloads", &loopback_config::defer_downloads, nullptr, 1},
    {"free_synchronises", &loopback_config::free_synchronises, nullptr, 1},
    {"log_operations", &loopback_config::log_operations, nullptr, 0},
    {"threads", &loopback_config::threads, nullptr, 0},
    {"pinned_bandwidth", nullptr, &loopback_config::pinned_bandwidth, 25e9},
    {"pageable_bandwidth", nullptr, &loopback_config::pageable_bandwidth, 10e9},
    {"peer_bandwidth", nullptr, &loopback_config::peer_bandwidth, 20e9},
    {"memory_bandwidth", nullptr, &loopback_config::memory_bandwidth, 360e9},
    {"flop_rate", nullptr, &loopback_config::flop_rate, 25e12},
    {"copy_latency", nullptr, &loopback_config::copy_latency, 10e-6},
    {"graph_latency", nullptr, &loopback_config::graph_latency, 10e-6},
    {"op_latency", nullptr, &loopback_config::op_latency, 2e-6},
    {"alloc_latency", nullptr, &loopback_config::alloc_latency, 0},
};

void assign(loopback_config& config, const Option& option, double value) {
    if (option.integer != nullptr) {
        config.*option.integer = static_cast<int64_t>(value);
    } else {
        config.*option.real = value;
    }
}

std::string environment_name(const std::string& name) {
    std::string result = "LOOPBACK_";
    for (char letter : name) {
        result += static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
    }
    return result;
}

}  // namespace

loopback_config default_config() {
    loopback_config config{};
    for (const Option& option : OPTIONS) {
        assign(config, option, option.fallback);
    }
    return config;
}

loopback_config config_from_environment() {
    loopback_config config = default_config();
    for (const Option& option : OPTIONS) {
        const char* value = std::getenv(environment_name(option.name).c_str());
        if (value != nullptr && value[0] != '\0') {
            assign(config, option, std::strtod(value, nullptr));
        }
    }
    return config;
}

int environment_int(const char* name, int fallback) {
    const char* value = std::getenv(name);
    return value != nullptr && value[0] != '\0' ? std::atoi(value) : fallback;
}

bool set_option(loopback_config& config, const std::string& name, double value) {
    for (const Option& option : OPTIONS) {
        if (name == option.name) {
            assign(config, option, value);
            return true;
        }
    }
    return false;
}

bool get_option(const loopback_config& config, const std::string& name, double& value) {
    for (const Option& option : OPTIONS) {
        if (name == option.name) {
            value = option.integer != nullptr ? static_cast<double>(config.*option.integer) : config.*option.real;
            return true;
        }
    }
    return false;
}

int default_threads() {
    const unsigned count = std::thread::hardware_concurrency();
    return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace loopback
