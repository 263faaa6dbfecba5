#include "sdcpp/lanes/pass_inputs.h"

#include <utility>

namespace sdcpp {

namespace {

thread_local const PassInputs* current_inputs = nullptr;

}  // namespace

PassScope::PassScope(PassInputs inputs) : inputs_(std::move(inputs)), outer_(std::exchange(current_inputs, &inputs_)) {}

PassScope::~PassScope() {
    current_inputs = outer_;
}

const PassInputs* PassScope::current() {
    return current_inputs;
}

}  // namespace sdcpp
