// What the readers call of the engine that these programs are built without.
#include <cstdlib>

#include "ggml.h"
#include "sdcpp/seams/seams.h"

namespace sdcpp {

// Nothing cancels here.
void stop_if_cancelled() {}

}  // namespace sdcpp

// No target converts values.
void convert_tensor(void*, ggml_type, void*, ggml_type, int, int) {
    std::abort();
}
