#include "sdcpp/seams/text_forms.h"

#include "sdcpp/api/run.h"
#include "sdcpp/prompt/pieces.h"

namespace {

// Returns a form of a text, or, where nobody knows Unicode, the text with its spaces joined.
std::string form(const char* name, const std::string& text, const char* spaces) {
    const sdcpp::Run* run = sdcpp::run_current();
    if (run != nullptr && run->callbacks.text != nullptr) {
        if (const char* made = run->callbacks.text(name, text.c_str(), run->callbacks.data)) {
            return made;
        }
    }
    return sdcpp::spaces_joined(text, spaces);
}

}  // namespace

namespace sdcpp {

std::string clip_form(const std::string& text) {
    return form("clip", text, ascii_spaces);
}

std::string t5_form(const std::string& text) {
    return form("t5", text, " ");
}

}  // namespace sdcpp
