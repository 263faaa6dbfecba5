// The numbers of a tensor.
#include "sdcpp/files/values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "model_io/tensor_storage.h"
#include "sdcpp/conversion/stored_numbers.h"
#include "sdcpp/seams/seams.h"

namespace sdcpp::files {

namespace {

// What is read or converted between two looks whether the run is cancelled: some hundredths of a second's worth.
constexpr size_t bytes_at_once = 8u << 20;
constexpr size_t values_at_once = 1u << 20;

// Reads in pieces, and no more when the run is cancelled.
ReadAt in_pieces(const ReadAt& read) {
    return [&read](uint64_t position, void* to, size_t count) {
        for (size_t at = 0; at < count; at += bytes_at_once) {
            stop_if_cancelled();
            read(position + at, static_cast<uint8_t*>(to) + at, std::min(bytes_at_once, count - at));
        }
    };
}

// An 8-bit float: a sign, an exponent, a mantissa; the kind with 4 bits of exponent has no infinities.
float fp8(uint8_t code, int exponent_bits) {
    const int mantissa_bits = 7 - exponent_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
    const bool last = exponent == (1 << exponent_bits) - 1;
    if (last && (exponent_bits == 5 || mantissa == 7)) {
        return exponent_bits == 5 && mantissa == 0 ? sign * std::numeric_limits<float>::infinity()
                                                   : std::numeric_limits<float>::quiet_NaN();
    }
    const float fraction = std::ldexp(static_cast<float>(mantissa), -mantissa_bits);
    return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias) : sign * std::ldexp(1.0f + fraction, exponent - bias);
}

std::array<float, 256> fp8_table(int exponent_bits) {
    std::array<float, 256> table{};
    for (int code = 0; code < 256; ++code) {
        table[static_cast<size_t>(code)] = fp8(static_cast<uint8_t>(code), exponent_bits);
    }
    return table;
}

template <typename T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

// Calls take(index, number) for each number of a plain type.
template <typename F>
void each_number(const Dtype& dtype, const std::vector<uint8_t>& bytes, F&& take) {
    const std::string_view name = dtype.name;
    const size_t count = bytes.size() / dtype.bytes;
    const uint8_t* at = bytes.data();
    auto loop = [&](auto&& number) {
        for (size_t i = 0; i < count; ++i, at += dtype.bytes) {
            take(i, number(at));
        }
    };
    if (name == "F32") {
        loop([](const uint8_t* from) { return load<float>(from); });
    } else if (name == "F16") {
        loop([](const uint8_t* from) { return ggml_fp16_to_fp32(load<ggml_fp16_t>(from)); });
    } else if (name == "BF16") {
        loop([](const uint8_t* from) { return ggml_bf16_to_fp32(load<ggml_bf16_t>(from)); });
    } else if (name == "F64") {
        loop([](const uint8_t* from) { return static_cast<float>(load<double>(from)); });
    } else if (name == "I8") {
        loop([](const uint8_t* from) { return static_cast<float>(load<int8_t>(from)); });
    } else if (name == "U8" || name == "BOOL") {
        loop([](const uint8_t* from) { return static_cast<float>(*from); });
    } else if (name == "I16") {
        loop([](const uint8_t* from) { return static_cast<float>(load<int16_t>(from)); });
    } else if (name == "U16") {
        loop([](const uint8_t* from) { return static_cast<float>(load<uint16_t>(from)); });
    } else if (name == "U32") {
        loop([](const uint8_t* from) { return static_cast<float>(load<uint32_t>(from)); });
    } else if (name == "U64") {
        loop([](const uint8_t* from) { return static_cast<float>(load<uint64_t>(from)); });
    } else if (name == "F8_E4M3" || name == "F8_E5M2") {
        static const auto e4m3 = fp8_table(4);
        static const auto e5m2 = fp8_table(5);
        const auto& table = name == "F8_E4M3" ? e4m3 : e5m2;
        loop([&](const uint8_t* from) { return table[*from]; });
    } else {
        throw FileError("holds numbers of type " + std::string(name) + " where fractions are needed");
    }
}

uint64_t numbers_of(const Tensor& tensor) {
    return element_count(tensor);
}

std::vector<uint8_t> bytes_of(const Tensor& tensor, const ReadAt& read) {
    const uint64_t bytes = tensor.dtype == nullptr ? tensor.bytes : numbers_of(tensor) * tensor.dtype->bytes;
    std::vector<uint8_t> out(static_cast<size_t>(bytes));
    read_bytes(tensor, out.data(), read);
    return out;
}

// Copies numbers that lie apart, the fastest dimension last.
void gather(const Tensor& tensor, const std::vector<uint8_t>& from, uint8_t* to) {
    const size_t each = tensor.dtype->bytes;
    const size_t dims = tensor.shape.size();
    std::vector<int64_t> index(dims, 0);
    int64_t at = 0;
    const uint64_t count = numbers_of(tensor);
    for (uint64_t i = 0; i < count; ++i, to += each) {
        std::memcpy(to, from.data() + static_cast<size_t>(at) * each, each);
        for (size_t dim = dims; dim-- > 0;) {
            at += tensor.strides[dim];
            if (++index[dim] < tensor.shape[dim]) {
                break;
            }
            at -= tensor.strides[dim] * tensor.shape[dim];
            index[dim] = 0;
        }
    }
}

// Returns how many of n make a block, where there are parts of them.
uint64_t block_of(uint64_t n, uint64_t parts) {
    constexpr uint64_t usual = 128;
    if (parts == 1 || parts == n) {
        return parts == 1 ? n : 1;
    }
    if ((n + usual - 1) / usual == parts) {
        return usual;
    }
    return parts != 0 && n % parts == 0 ? n / parts : 0;
}

}  // namespace

void read_bytes(const Tensor& tensor, void* to, const ReadAt& read) {
    std::vector<uint8_t> apart;
    void* target = to;
    if (!tensor.strides.empty()) {
        apart.resize(static_cast<size_t>(tensor.bytes));
        target = apart.data();
    }
    if (tensor.packed_bytes > 0) {
        inflate(read, tensor.packed_offset, tensor.packed_bytes, tensor.offset, target,
                static_cast<size_t>(tensor.bytes));
    } else {
        read(tensor.offset, target, static_cast<size_t>(tensor.bytes));
    }
    if (!tensor.strides.empty()) {
        gather(tensor, apart, static_cast<uint8_t*>(to));
    }
}

std::vector<float> read_floats(const Tensor& tensor, const ReadAt& read) {
    const auto bytes = bytes_of(tensor, read);
    std::vector<float> out(static_cast<size_t>(numbers_of(tensor)));
    if (tensor.dtype != nullptr) {
        each_number(*tensor.dtype, bytes, [&](size_t i, float number) { out[i] = number; });
    } else if (tensor.block == GGML_TYPE_F32) {
        std::memcpy(out.data(), bytes.data(), bytes.size());
    } else {
        const auto to_float = ggml_get_type_traits(tensor.block)->to_float;
        if (to_float == nullptr) {
            throw FileError("tensor " + shown(tensor.name) + " holds no fractions");
        }
        to_float(bytes.data(), out.data(), static_cast<int64_t>(out.size()));
    }
    return out;
}

Scales scales_of(const Tensor& weight, const Tensor& scale, std::vector<float> factors) {
    Scales scales;
    scales.rows = weight.shape.empty() ? 1 : static_cast<uint64_t>(weight.shape[0]);
    scales.columns = numbers_of(weight) / scales.rows;
    uint64_t row_parts = factors.size();
    uint64_t column_parts = 1;
    if (factors.size() != scales.rows && scale.shape.size() == 2) {
        row_parts = static_cast<uint64_t>(scale.shape[0]);
        column_parts = static_cast<uint64_t>(scale.shape[1]);
    }
    scales.block_rows = block_of(scales.rows, row_parts);
    scales.block_columns = block_of(scales.columns, column_parts);
    if (scales.block_rows == 0 || scales.block_columns == 0) {
        throw FileError("tensor " + shown(scale.name) + " holds " + std::to_string(factors.size()) +
                        " scales, which do not fit its weight of " + std::to_string(scales.rows) + " rows");
    }
    scales.factors = std::move(factors);
    return scales;
}

void convert_rows(void* from, ggml_type from_type, void* to, ggml_type to_type, int64_t rows, int64_t columns) {
    const size_t from_row = ggml_row_size(from_type, columns);
    const size_t to_row = ggml_row_size(to_type, columns);
    const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(values_at_once) / std::max<int64_t>(columns, 1));
    for (int64_t row = 0; row < rows; row += most) {
        stop_if_cancelled();
        convert_tensor(static_cast<char*>(from) + static_cast<size_t>(row) * from_row, from_type,
                       static_cast<char*>(to) + static_cast<size_t>(row) * to_row, to_type,
                       static_cast<int>(std::min(most, rows - row)), static_cast<int>(columns));
    }
}

void read_tensor(const TensorStorage& storage, void* to, size_t count, const ReadAt& read_at) {
    const ReadAt read = in_pieces(read_at);
    if (!storage.reading) {
        read(storage.offset, to, count);
        return;
    }
    const Tensor& tensor = storage.reading->tensor;
    const Scales& scales = storage.reading->scales;
    if (scales.factors.empty()) {
        read_bytes(tensor, to, read);
        return;
    }
    const auto bytes = bytes_of(tensor, read);
    auto* out = static_cast<uint8_t*>(to);
    each_number(*tensor.dtype, bytes, [&](size_t i, float number) {
        if (i % values_at_once == 0) {
            stop_if_cancelled();
        }
        const float value = number * scales.at(i / scales.columns, i % scales.columns);
        if (storage.type == GGML_TYPE_F16) {
            const ggml_fp16_t half = ggml_fp32_to_fp16(value);
            std::memcpy(out + i * sizeof(half), &half, sizeof(half));
        } else if (storage.type == GGML_TYPE_BF16) {
            const ggml_bf16_t half = ggml_fp32_to_bf16(value);
            std::memcpy(out + i * sizeof(half), &half, sizeof(half));
        } else {
            std::memcpy(out + i * sizeof(value), &value, sizeof(value));
        }
    });
}

}  // namespace sdcpp::files
