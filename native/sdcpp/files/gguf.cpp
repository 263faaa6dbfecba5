// Lists GGUF files: counts, pairs of names and values, the tensors' entries, the data.
#include <algorithm>
#include <iomanip>
#include <sstream>
#include <utility>

#include "sdcpp/files/listing.h"

namespace sdcpp::files {

namespace {

enum ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

constexpr uint64_t longest_gguf_name = 65535;
constexpr uint64_t longest_text = 1 << 20;
constexpr uint32_t most_dimensions = 8;
// The least that an entry takes.
constexpr uint64_t pair_bytes = 8 + 4 + 1;
constexpr uint64_t tensor_bytes = 8 + 4 + 4 + 8;

// Returns the bytes of a number of this type, or 0.
uint64_t value_bytes(uint32_t type) {
    switch (type) {
        case u8:
        case i8:
        case boolean:
            return 1;
        case u16:
        case i16:
            return 2;
        case u32:
        case i32:
        case f32:
            return 4;
        case u64:
        case i64:
        case f64:
            return 8;
        default:
            return 0;
    }
}

std::string name_at(Cursor& cursor, const char* what) {
    const auto length = cursor.number<uint64_t>();
    if (length > longest_gguf_name) {
        throw FileError(std::string("has a damaged header: a ") + what + " of " + std::to_string(length) + " bytes");
    }
    return cursor.text(length);
}

std::string scalar_at(Cursor& cursor, uint32_t type) {
    std::ostringstream out;
    switch (type) {
        case u8:
            out << unsigned{cursor.number<uint8_t>()};
            break;
        case i8:
            out << int{cursor.number<int8_t>()};
            break;
        case u16:
            out << cursor.number<uint16_t>();
            break;
        case i16:
            out << cursor.number<int16_t>();
            break;
        case u32:
            out << cursor.number<uint32_t>();
            break;
        case i32:
            out << cursor.number<int32_t>();
            break;
        case f32:
            out << std::setprecision(9) << cursor.number<float>();
            break;
        case boolean:
            out << (cursor.number<uint8_t>() != 0 ? "true" : "false");
            break;
        case u64:
            out << cursor.number<uint64_t>();
            break;
        case i64:
            out << cursor.number<int64_t>();
            break;
        default:
            out << std::setprecision(17) << cursor.number<double>();
    }
    return out.str();
}

void read_value(Cursor& cursor, uint32_t type, const std::string& key, std::vector<Value>& values) {
    if (type == text) {
        const auto length = cursor.number<uint64_t>();
        if (length > longest_text) {
            values.push_back({key, std::to_string(length) + " bytes of text", false});
            cursor.skip(length);
        } else {
            values.push_back({key, cursor.text(length)});
        }
    } else if (value_bytes(type) != 0) {
        values.push_back({key, scalar_at(cursor, type)});
    } else if (type == array) {
        const auto kind = cursor.number<uint32_t>();
        const auto count = cursor.number<uint64_t>();
        const uint64_t each = kind == text ? 8 : value_bytes(kind);
        if (each == 0 || count > cursor.left() / each) {
            throw FileError("has a damaged header: " + shown(key) + " is no list that the file could hold");
        }
        values.push_back({key, "a list of " + std::to_string(count), false});
        if (kind != text) {
            cursor.skip(count * each);
        } else {
            for (uint64_t i = 0; i < count; ++i) {
                cursor.skip(cursor.number<uint64_t>());
            }
        }
    } else {
        throw FileError("has a damaged header: " + shown(key) + " is of type " + std::to_string(type));
    }
}

uint64_t alignment_at(Cursor& cursor, uint32_t type) {
    const uint64_t alignment = type == u32 ? cursor.number<uint32_t>() : 0;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        throw FileError("has a damaged header: its alignment is no power of 2");
    }
    return alignment;
}

Tensor entry_at(Cursor& cursor) {
    Tensor tensor;
    tensor.name = name_at(cursor, "tensor name");
    const auto dims = cursor.number<uint32_t>();
    if (dims > most_dimensions) {
        throw FileError("tensor " + shown(tensor.name) + " has " + std::to_string(dims) + " dimensions");
    }
    tensor.shape.resize(dims);
    for (auto& size : tensor.shape) {
        size = cursor.number<int64_t>();
        if (size <= 0) {
            throw FileError("tensor " + shown(tensor.name) + " has a dimension of " + std::to_string(size));
        }
    }
    const auto type = cursor.number<uint32_t>();
    tensor.offset = cursor.number<uint64_t>();
    if (type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(type)) <= 0 ||
        ggml_type_size(static_cast<ggml_type>(type)) == 0) {
        throw FileError("tensor " + shown(tensor.name) + " is of type " + std::to_string(type) +
                        ", which this engine does not know");
    }
    tensor.block = static_cast<ggml_type>(type);
    const int64_t in_block = ggml_blck_size(tensor.block);
    const int64_t row = dims == 0 ? 1 : tensor.shape[0];
    if (row % in_block != 0) {
        throw FileError("tensor " + shown(tensor.name) + " has rows of " + std::to_string(row) +
                        " numbers, but its type comes in blocks of " + std::to_string(in_block));
    }
    tensor.bytes = product(element_count(tensor) / static_cast<uint64_t>(in_block), ggml_type_size(tensor.block),
                           "holds a tensor of more bytes than a file can hold");
    // The engine has 4 dimensions: the slowest ones become one.
    while (tensor.shape.size() > engine_dimensions) {
        const int64_t slowest = tensor.shape.back();
        tensor.shape.pop_back();
        tensor.shape.back() *= slowest;
    }
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    return tensor;
}

}  // namespace

bool is_gguf(Input& input) {
    char magic[4] = {};
    if (input.size() >= sizeof(magic)) {
        input.read(0, magic, sizeof(magic));
    }
    return std::string(magic, sizeof(magic)) == "GGUF";
}

Listing list_gguf(Input& input) {
    Cursor cursor(input, 4);
    const auto version = cursor.number<uint32_t>();
    if (version < 2 || version > 3) {
        throw FileError("is GGUF of version " + std::to_string(version) + "; the engine reads 2 and 3");
    }
    const auto tensors = cursor.number<uint64_t>();
    const auto pairs = cursor.number<uint64_t>();
    if (tensors > cursor.left() / tensor_bytes || pairs > cursor.left() / pair_bytes) {
        throw FileError("has a damaged header: it counts " + std::to_string(tensors) + " tensors and " +
                        std::to_string(pairs) + " values, more than it has room for");
    }
    uint64_t alignment = 32;
    Listing listing;
    for (uint64_t i = 0; i < pairs; ++i) {
        const std::string key = name_at(cursor, "name");
        const auto type = cursor.number<uint32_t>();
        if (key == "general.alignment") {
            alignment = alignment_at(cursor, type);
        } else {
            read_value(cursor, type, key, listing.metadata);
        }
    }
    listing.format = "GGUF";
    for (uint64_t i = 0; i < tensors; ++i) {
        listing.tensors.push_back(entry_at(cursor));
    }
    const uint64_t data = (cursor.position() + alignment - 1) / alignment * alignment;
    for (auto& tensor : listing.tensors) {
        const uint64_t room = input.size() > data ? input.size() - data : 0;
        if (tensor.offset > room || tensor.bytes > room - tensor.offset) {
            throw FileError("is cut off: tensor " + shown(tensor.name) + " of " + std::to_string(tensor.bytes) +
                            " bytes does not lie inside its " + std::to_string(input.size()) + " bytes");
        }
        tensor.offset += data;
    }
    check_names(listing);
    check_places(listing);
    return listing;
}

}  // namespace sdcpp::files
