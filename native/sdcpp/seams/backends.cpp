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
#include "sdcpp/api/run.h"
#include "sdcpp/api/turns.h"
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

// A device whose memory cannot be asked for is sick, which is no reason to say nothing of the others.
sdcpp_device_t describe(sdcpp::Run& run, ggml_backend_dev_t dev) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
    std::string features;
    for (auto* feature = features_of(reg); feature != nullptr && feature->name != nullptr; ++feature) {
        features += (features.empty() ? "" : ",") + std::string(feature->name) + "=" + feature->value;
    }
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    sdcpp::Run question(run.callbacks);
    const sdcpp_status_t answer = sdcpp::run_guarded(question, [&] {
        ggml_backend_dev_memory(dev, &free_bytes, &total_bytes);
        return true;
    });
    ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(dev);
    return {run.keep(ggml_backend_dev_name(dev)),
            run.keep(ggml_backend_dev_description(dev)),
            kind_name(ggml_backend_dev_type(dev)),
            run.keep(ggml_backend_reg_name(reg)),
            host != nullptr ? run.keep(ggml_backend_buft_name(host)) : nullptr,
            module_path_of(reg),
            run.keep(features.c_str()),
            answer == SDCPP_OK ? nullptr : run.keep(question.error.c_str()),
            answer == SDCPP_OK ? free_bytes : 0,
            answer == SDCPP_OK ? total_bytes : 0,
            answer == SDCPP_OK ? sdcpp::device_reserve(total_bytes, free_bytes) : 0};
}

}  // namespace

namespace sdcpp {

void backends_load() {
    static std::once_flag once;
    std::call_once(once, [] {
        routes_install();
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

const char* sdcpp_kernels_name(sd_kernels_t kernels) {
    return kernels == SD_KERNELS_FAST ? "fast" : kernels == SD_KERNELS_ENGINE ? "engine" : nullptr;
}

sd_kernels_t sdcpp_str_to_kernels(const char* name) {
    for (const sd_kernels_t kernels : {SD_KERNELS_FAST, SD_KERNELS_ENGINE}) {
        if (std::strcmp(name, sdcpp_kernels_name(kernels)) == 0) {
            return kernels;
        }
    }
    return SD_KERNELS_COUNT;
}

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

sdcpp_status_t sdcpp_backends_load(sdcpp_run_t* run) {
    const sdcpp::Turn turn(*run, {{}, true});
    return turn.status() != SDCPP_OK ? turn.status() : sdcpp::run_guarded(*run, [] {
        sdcpp::backends_load();
        return true;
    });
}

sdcpp_status_t sdcpp_backend_load(sdcpp_run_t* run, const char* path) {
    const sdcpp::Turn turn(*run, {{}, true});
    return turn.status() != SDCPP_OK
               ? turn.status()
               : sdcpp::run_guarded(*run, [&] { return path != nullptr && ggml_backend_load(path) != nullptr; });
}

sdcpp_status_t sdcpp_devices(sdcpp_run_t* run, sdcpp_device_t* devices, int capacity, int* count) {
    *count = 0;
    const sdcpp::Turn turn(*run, {});
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    return sdcpp::run_guarded(*run, [&] {
        sdcpp::backends_load();
        for (size_t i = 0; i < ggml_backend_dev_count() && *count < capacity; ++i) {
            devices[(*count)++] = describe(*run, ggml_backend_dev_get(i));
        }
        return true;
    });
}
