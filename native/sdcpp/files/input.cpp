// Reads a model file of which nothing is believed.
#include "sdcpp/files/input.h"

#include <algorithm>
#include <cstring>

namespace sdcpp::files {

namespace {

constexpr size_t window_bytes = 64 * 1024;
constexpr size_t shown_name = 120;

}  // namespace

Input::Input(const std::string& path) : file(path, std::ios::binary) {
    if (file.is_open()) {
        file.seekg(0, std::ios::end);
        const auto found = file.tellg();
        if (file && found >= 0) {
            bytes = static_cast<uint64_t>(found);
            return;
        }
    }
    throw FileError("cannot be read");
}

void Input::read(uint64_t position, void* to, size_t count) {
    if (position > bytes || count > bytes - position) {
        throw FileError("is cut off: it has " + std::to_string(bytes) + " bytes");
    }
    file.clear();
    file.seekg(static_cast<std::streamoff>(position));
    file.read(static_cast<char*>(to), static_cast<std::streamsize>(count));
    if (!file) {
        throw FileError("cannot be read to its end");
    }
}

void Cursor::fill() {
    if (next < window.size() || input == nullptr) {
        return;
    }
    start += next;
    next = 0;
    window.resize(static_cast<size_t>(std::min<uint64_t>(window_bytes, left())));
    input->read(start, window.data(), window.size());
}

void Cursor::read(void* to, size_t count) {
    if (count > left()) {
        throw FileError("is cut off: it ends at byte " + std::to_string(end));
    }
    auto* out = static_cast<uint8_t*>(to);
    while (count > 0) {
        fill();
        const size_t piece = std::min(count, window.size() - next);
        std::memcpy(out, window.data() + next, piece);
        out += piece;
        next += piece;
        count -= piece;
    }
}

void Cursor::skip(uint64_t count) {
    if (count > left()) {
        throw FileError("is cut off: it ends at byte " + std::to_string(end));
    }
    if (input == nullptr || count <= window.size() - next) {
        next += static_cast<size_t>(count);
        return;
    }
    start = position() + count;
    next = 0;
    window.clear();
}

std::string Cursor::text(uint64_t count) {
    if (count > left()) {
        throw FileError("is cut off: it ends at byte " + std::to_string(end));
    }
    std::string out(static_cast<size_t>(count), '\0');
    read(out.data(), out.size());
    return out;
}

std::string Cursor::line() {
    std::string out;
    while (true) {
        const char letter = number<char>();
        if (letter == '\n') {
            return out;
        }
        out.push_back(letter);
    }
}

uint64_t product(uint64_t a, uint64_t b, const char* message) {
    constexpr uint64_t most = uint64_t{1} << 62;
    if (b != 0 && a >= most / b) {
        throw FileError(message);
    }
    return a * b;
}

std::string shown(const std::string& name) {
    std::string out = "'";
    for (const char letter : name.substr(0, shown_name)) {
        out.push_back(static_cast<unsigned char>(letter) < ' ' || letter == '\x7f' ? '?' : letter);
    }
    return out + (name.size() > shown_name ? "...'" : "'");
}

}  // namespace sdcpp::files
