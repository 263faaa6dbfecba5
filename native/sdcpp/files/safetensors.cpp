// Lists safetensors files: 8 bytes that say how long the header is, the header (JSON), the data.
#include <utility>

#include "json.hpp"
#include "sdcpp/files/listing.h"

namespace sdcpp::files {

namespace {

constexpr uint64_t length_bytes = 8;
constexpr uint64_t longest_header = 100'000'000;  // the format's own limit

// Takes the header value by value, so that memory is bounded by the tensors and not by what else stands there.
class Header {
public:
    Header(Listing& listing, uint64_t data, uint64_t size) : listing(listing), data(data), size(size) {}

    bool null() { return scalar(); }
    bool boolean(bool) { return scalar(); }
    bool number_float(double, const std::string&) { return scalar(); }
    bool binary(nlohmann::json::binary_t&) { return scalar(); }
    bool number_integer(int64_t value) {
        if (in_tensor() && depth == 3) {
            throw FileError("tensor " + shown(tensor.name) + " has the number " + std::to_string(value) +
                            " among its sizes and offsets");
        }
        return scalar();
    }
    bool number_unsigned(uint64_t value) {
        if (!in_tensor() || depth != 3) {
            return scalar();
        }
        constexpr size_t most = 64;
        auto& numbers = field == "shape" ? shape : offsets;
        if (numbers.size() >= most || value >= uint64_t{1} << 62) {
            damaged();
        }
        numbers.push_back(value);
        return true;
    }
    bool string(std::string& value) {
        if (in_tensor() && depth == 2 && field == "dtype") {
            type = value;
            return true;
        }
        if (other && depth == 2) {
            listing.metadata.push_back({field, value});
        }
        return scalar();
    }
    bool key(std::string& value) {
        if (depth == 1) {
            tensor = Tensor{};
            tensor.name = value;
            type.clear();
            shape.clear();
            offsets.clear();
            has_shape = false;
            other = value == "__metadata__";
        } else if (depth == 2) {
            field = value;
        }
        return true;
    }
    bool start_object(size_t) {
        if (!other && depth > 1) {
            damaged();
        }
        ++depth;
        return true;
    }
    bool end_object() {
        if (--depth == 1 && !other) {
            finish();
        }
        return true;
    }
    bool start_array(size_t) {
        if (!other && (depth != 2 || (field != "shape" && field != "data_offsets"))) {
            damaged();
        }
        has_shape = has_shape || field == "shape";
        ++depth;
        return true;
    }
    bool end_array() {
        --depth;
        return true;
    }
    bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
        throw FileError("has a damaged header: it is no JSON at byte " + std::to_string(length_bytes + position));
    }

private:
    bool in_tensor() const { return !other && depth >= 2; }

    [[noreturn]] void damaged() const {
        throw FileError(tensor.name.empty() ? "has a damaged header"
                                            : "has a damaged header at tensor " + shown(tensor.name));
    }

    // A value that means nothing here.
    bool scalar() {
        if (!other && (depth != 2 || field == "dtype" || field == "shape" || field == "data_offsets")) {
            damaged();
        }
        return true;
    }

    void finish() {
        if (type.empty() || !has_shape || offsets.size() != 2) {
            damaged();
        }
        const uint64_t begin = offsets[0];
        const uint64_t end = offsets[1];
        if (begin > end) {
            throw FileError("tensor " + shown(tensor.name) + " ends before it begins");
        }
        if (end > size - data) {
            throw FileError("is cut off: tensor " + shown(tensor.name) + " ends at byte " + std::to_string(data + end) +
                            " of " + std::to_string(size));
        }
        tensor.offset = data + begin;
        tensor.bytes = end - begin;
        tensor.shape.assign(shape.begin(), shape.end());
        tensor.dtype = dtype_of(type);
        if (tensor.dtype == nullptr) {
            leave_out(listing, tensor.name, type);
            return;
        }
        if (element_count(tensor) * tensor.dtype->bytes != tensor.bytes) {
            throw FileError("tensor " + shown(tensor.name) + " has " + std::to_string(tensor.bytes) +
                            " bytes, which do not make its shape of " + type);
        }
        add(listing, std::move(tensor));
    }

    Listing& listing;
    const uint64_t data;
    const uint64_t size;
    int depth = 0;
    bool other = false;  // inside what is no tensor
    bool has_shape = false;
    std::string field;
    std::string type;
    std::vector<uint64_t> shape;
    std::vector<uint64_t> offsets;
    Tensor tensor;
};

uint64_t header_length(Input& input) {
    uint64_t length = 0;
    if (input.size() >= length_bytes) {
        input.read(0, &length, sizeof(length));
    }
    return length;
}

}  // namespace

bool is_safetensors(Input& input) {
    const uint64_t length = header_length(input);
    return length >= 2 && length <= longest_header;
}

Listing list_safetensors(Input& input) {
    const uint64_t length = header_length(input);
    if (length > input.size() - length_bytes) {
        throw FileError("is cut off: it ends inside its header (" + std::to_string(input.size()) + " bytes)");
    }
    std::string text(static_cast<size_t>(length), '\0');
    input.read(length_bytes, text.data(), text.size());
    Listing listing;
    listing.format = "safetensors";
    Header header(listing, length_bytes + length, input.size());
    // What follows the closing brace is padding, of spaces or of zeros.
    while (!text.empty() && text.back() == '\0') {
        text.pop_back();
    }
    nlohmann::json::sax_parse(text, &header);
    check_names(listing);
    check_places(listing);
    return listing;
}

}  // namespace sdcpp::files
