// Reads a model file of which nothing is believed: every read is checked against the file's size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace sdcpp::files {

// What is wrong with a file, in words that follow its path: "is cut off: ...", "tensor 'x' ...".
struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// An open file.
class Input {
public:
    // Throws FileError when it cannot be opened.
    explicit Input(const std::string& path);

    uint64_t size() const { return bytes; }

    // Reads from a position. Throws FileError when the file ends before that.
    void read(uint64_t position, void* to, size_t count);

private:
    std::ifstream file;
    uint64_t bytes = 0;
};

// Walks through a file, or through a part of it that is in memory.
class Cursor {
public:
    // From a position of a file to its end.
    explicit Cursor(Input& input, uint64_t position = 0) : input(&input), start(position), end(input.size()) {}
    // Over bytes in memory, which must outlive it.
    Cursor(const uint8_t* data, size_t count) : window(data, data + count), end(count), next(0) {}

    uint64_t position() const { return start + next; }
    uint64_t left() const { return end > position() ? end - position() : 0; }

    // Throw FileError when there is not as much left.
    void read(void* to, size_t count);
    void skip(uint64_t count);
    std::string text(uint64_t count);
    // Up to a line feed, without it.
    std::string line();

    // A number as it lies in memory: these files and this machine are little-endian.
    template <typename T>
    T number() {
        T value;
        read(&value, sizeof(value));
        return value;
    }

private:
    void fill();

    Input* input = nullptr;
    std::vector<uint8_t> window;
    uint64_t start = 0;  // position of the window's first byte
    uint64_t end = 0;
    size_t next = 0;
};

// Returns a * b. Throws FileError with the message when that is 2^62 or more.
uint64_t product(uint64_t a, uint64_t b, const char* message);

// Returns a name as a message shows it: in quotes, shortened, without control characters.
std::string shown(const std::string& name);

}  // namespace sdcpp::files
