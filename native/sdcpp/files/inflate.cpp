// Unpacks a part of a deflated zip entry, with the engine's copy of miniz.
#include "sdcpp/files/inflate.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "sdcpp/files/input.h"

// What the engine's zip.c defines. Its miniz.h holds the definitions as well, so it can be included only once.
extern "C" {
struct tinfl_decompressor_tag;
tinfl_decompressor_tag* tinfl_decompressor_alloc(void);
void tinfl_decompressor_free(tinfl_decompressor_tag* decoder);
int tinfl_decompress(tinfl_decompressor_tag* decoder, const uint8_t* in, size_t* in_size, uint8_t* out_start,
                     uint8_t* out, size_t* out_size, uint32_t flags);
}

namespace sdcpp::files {

namespace {

constexpr size_t window = 32768;        // TINFL_LZ_DICT_SIZE
constexpr uint32_t has_more_input = 2;  // TINFL_FLAG_HAS_MORE_INPUT
constexpr int status_done = 0;          // TINFL_STATUS_DONE; what is below is a failure

}  // namespace

void inflate(const ReadAt& read, uint64_t position, uint64_t packed, uint64_t first, void* to, size_t count) {
    std::vector<uint8_t> in(window);
    std::vector<uint8_t> out(window);
    const std::unique_ptr<tinfl_decompressor_tag, decltype(&tinfl_decompressor_free)> decoder(
        tinfl_decompressor_alloc(), tinfl_decompressor_free);
    if (decoder == nullptr) {
        throw std::bad_alloc();
    }
    size_t next = 0;   // of in
    size_t there = 0;  // in in
    size_t at = 0;     // of out
    uint64_t made = 0;
    const uint64_t end = first + count;
    while (made < end) {
        if (next == there) {
            there = static_cast<size_t>(std::min<uint64_t>(window, packed));
            read(position, in.data(), there);
            position += there;
            packed -= there;
            next = 0;
        }
        size_t taken = there - next;
        size_t given = window - at;
        const int status = tinfl_decompress(decoder.get(), in.data() + next, &taken, out.data(), out.data() + at,
                                            &given, packed > 0 ? has_more_input : 0);
        next += taken;
        // What of this piece is wanted.
        const uint64_t begin = std::max(made, first);
        const uint64_t stop = std::min(made + given, end);
        if (begin < stop) {
            std::memcpy(static_cast<uint8_t*>(to) + (begin - first), out.data() + at + (begin - made),
                        static_cast<size_t>(stop - begin));
        }
        made += given;
        at = (at + given) % window;
        if (made < end && (status <= status_done || (taken == 0 && given == 0 && packed == 0))) {
            throw FileError("has a damaged zip entry");
        }
    }
}

}  // namespace sdcpp::files
