// Converting a model's files: the C functions.
#include "sdcpp/conversion/convert.h"

#include "sdcpp/api/run.h"
#include "sdcpp/api/turns.h"

void sdcpp_convert_params_init(sdcpp_convert_params_t* params) {
    *params = {nullptr, nullptr, false, false, false, SD_TYPE_COUNT, nullptr, sd_get_num_physical_cores(), nullptr, 0};
}

sdcpp_status_t sdcpp_convert(sdcpp_run_t* run, const sdcpp_convert_params_t* params) {
    const sdcpp::Turn turn(*run, sdcpp::Claim{});  // of no device: it waits for nobody
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    const sdcpp_status_t status = sdcpp::run_guarded(*run, [&] {
        run->converted = sdcpp::convert_model(*params);
        return true;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

bool sdcpp_run_converted_get(const sdcpp_run_t* run, int index, sdcpp_converted_t* converted) {
    if (converted == nullptr || index < 0 || static_cast<size_t>(index) >= run->converted.size()) {
        return false;
    }
    const auto& found = run->converted[static_cast<size_t>(index)];
    *converted = {found.name.c_str(), found.from.c_str(), found.to.c_str(), found.reason.c_str(), found.bytes};
    return true;
}
