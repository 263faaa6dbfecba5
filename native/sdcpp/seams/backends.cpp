// Which backend modules are loaded and from where, and what the devices say of themselves.
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "ggml-backend.h"
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/memory_budget.h"
#include "util.h"

namespace {

// The file that holds an address of this process; empty when the platform cannot say.
std::string file_of(const void* address) {
    if (address == nullptr) {
        return {};
    }
#ifdef _WIN32
    HMODULE module = nullptr;
    char path[MAX_PATH];
    if (!GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                            static_cast<LPCSTR>(address), &module) ||
        GetModuleFileNameA(module, path, MAX_PATH) == 0) {
        return {};
    }
    return path;
#else
    Dl_info info;
    return dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
#endif
}

const std::string& library_path() {
    static const std::string path = file_of(reinterpret_cast<const void*>(&sdcpp_library_path));
    return path;
}

ggml_backend_feature* features_of(ggml_backend_reg_t reg) {
    if (reg == nullptr) {
        return nullptr;
    }
    auto get = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
    return get != nullptr ? get(reg) : nullptr;
}

const char* kind_name(enum ggml_backend_dev_type type) {
    switch (type) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:
            return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU:
            return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU:
            return "igpu";
        default:
            return "accel";
    }
}

void log_line(ggml_log_level level, const char* text, void*) {
    log_printf(level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT ? SD_LOG_ERROR
               : level == GGML_LOG_LEVEL_WARN                                ? SD_LOG_WARN
                                                                             : SD_LOG_DEBUG,
               "ggml", 0, "%s", text);
}

// ggml writes to standard error until somebody takes its lines; a model that is loaded later takes them as well.
void take_log() {
    static std::once_flag once;
    std::call_once(once, [] { ggml_log_set(log_line, nullptr); });
}

// Any function of the module will do; most modules answer to at least one of these names.
const char* module_path_of(ggml_backend_reg_t reg) {
    static std::mutex mutex;
    static std::map<ggml_backend_reg_t, std::string> paths;
    std::lock_guard<std::mutex> lock(mutex);
    auto known = paths.find(reg);
    if (known == paths.end()) {
        std::string path;
        for (const char* name : {"ggml_backend_get_features", "ggml_backend_set_n_threads",
                                 "ggml_backend_split_buffer_type", "ggml_backend_get_device_memory"}) {
            path = file_of(ggml_backend_reg_get_proc_address(reg, name));
            if (!path.empty()) {
                break;
            }
        }
        known = paths.emplace(reg, path).first;
    }
    return known->second.empty() ? nullptr : known->second.c_str();
}

}  // namespace

namespace sdcpp {

void backends_load() {
    static std::once_flag once;
    std::call_once(once, [] {
        take_log();
        // Without a directory ggml would search the executable's and the current one, which may hold foreign code.
        const size_t slash = library_path().find_last_of("/\\");
        const std::string directory = slash == std::string::npos ? "." : library_path().substr(0, slash);
        if (slash != std::string::npos) {
            ggml_backend_load_all_from_path(directory.c_str());
        }
    });
}

int cpu_feature(const char* name) {
    backends_load();
    for (auto* feature = features_of(ggml_backend_reg_by_name("CPU")); feature != nullptr && feature->name != nullptr;
         ++feature) {
        if (std::strcmp(feature->name, name) == 0) {
            return 1;
        }
    }
    return 0;
}

}  // namespace sdcpp

const char* sdcpp_engine_commit(void) {
    return SDCPP_ENGINE_COMMIT;
}

const char* sdcpp_ggml_version(void) {
    return ggml_version();
}

const char* sdcpp_ggml_commit(void) {
    return SDCPP_GGML_COMMIT;
}

const char* sdcpp_library_path(void) {
    return library_path().empty() ? nullptr : library_path().c_str();
}

int sdcpp_backends_load(void) {
    sdcpp::guard([] {
        sdcpp::backends_load();
        return true;
    });
    return sdcpp_device_count();
}

bool sdcpp_backend_load(const char* path) {
    return path != nullptr && sdcpp::guard([&] {
        take_log();
        return ggml_backend_load(path) != nullptr;
    });
}

int sdcpp_device_count(void) {
    return static_cast<int>(ggml_backend_dev_count());
}

bool sdcpp_device_get(int index, sdcpp_device_t* device) {
    if (device == nullptr || index < 0 || index >= sdcpp_device_count()) {
        return false;
    }
    return sdcpp::guard([&] {
        ggml_backend_dev_t dev = ggml_backend_dev_get(static_cast<size_t>(index));
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
        size_t free_bytes = 0;
        size_t total_bytes = 0;
        ggml_backend_dev_memory(dev, &free_bytes, &total_bytes);
        ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(dev);
        *device = {ggml_backend_dev_name(dev),
                   ggml_backend_dev_description(dev),
                   kind_name(ggml_backend_dev_type(dev)),
                   ggml_backend_reg_name(reg),
                   host != nullptr ? ggml_backend_buft_name(host) : nullptr,
                   module_path_of(reg),
                   free_bytes,
                   total_bytes,
                   sdcpp::device_reserve(total_bytes)};
        return true;
    });
}

size_t sdcpp_device_features(int index, char* text, size_t size) {
    std::string joined;
    if (index >= 0 && index < sdcpp_device_count()) {
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_dev_get(static_cast<size_t>(index)));
        for (auto* feature = features_of(reg); feature != nullptr && feature->name != nullptr; ++feature) {
            joined += (joined.empty() ? "" : ",") + std::string(feature->name) + "=" + feature->value;
        }
    }
    if (text != nullptr && size > 0) {
        const size_t length = joined.copy(text, size - 1);
        text[length] = '\0';
    }
    return joined.size() + 1;
}
