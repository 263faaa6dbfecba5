// The tensors that a pickle holds, under the names of a state dict.
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "sdcpp/files/pickle.h"

namespace sdcpp::files {

namespace {


// Walks through what a pickle holds, each container once.
class Collector {
public:
    Collector(const Pickle& pickle, Listing& listing, const std::function<Place(const Pickle::Storage&)>& place)
        : pickle(pickle), listing(listing), place(place) {}

    void walk(Pickle::Value value, const std::string& prefix, int depth) {
        using Kind = Pickle::Kind;
        constexpr int deepest = 64;
        if ((value.kind != Kind::dict && value.kind != Kind::object) || depth > deepest ||
            prefix.size() > longest_name || !seen.insert(value.number).second) {
            return;
        }
        const auto& items = pickle.items(value);
        for (size_t i = 0; i + 1 < items.size(); i += 2) {
            const Pickle::Value item = items[i + 1];
            if (items[i].kind != Kind::text || pickle.text(items[i]).size() > longest_name) {
                continue;
            }
            const std::string& key = pickle.text(items[i]);
            if (item.kind == Kind::tensor) {
                put(prefix + key, pickle.tensor(item));
            } else if (value.kind == Kind::object && key == "_modules" && item.kind == Kind::dict) {
                // A whole module: the names of its state dict are the paths of its parts.
                if (seen.insert(item.number).second) {
                    const auto& parts = pickle.items(item);
                    for (size_t j = 0; j + 1 < parts.size(); j += 2) {
                        if (parts[j].kind == Kind::text && pickle.text(parts[j]).size() <= longest_name) {
                            walk(parts[j + 1], prefix + pickle.text(parts[j]) + ".", depth + 1);
                        }
                    }
                }
            } else {
                const bool of_module = value.kind == Kind::object && (key == "_parameters" || key == "_buffers");
                walk(item, of_module ? prefix : std::string(), depth + 1);
            }
        }
    }

    void put(const std::string& name, const Pickle::Tensor& found) {
        Tensor tensor;
        tensor.name = name;
        tensor.dtype = found.dtype;
        tensor.shape = found.shape;
        if (tensor.dtype == nullptr) {
            leave_out(listing, name, found.type);
            return;
        }
        const uint64_t each = tensor.dtype->bytes;
        const uint64_t count = element_count(tensor);
        if (count == 0) {
            leave_out(listing, name, "empty");
            return;
        }
        const char* absurd = "holds a tensor that reaches beyond any file";
        uint64_t last = 0;
        int64_t packed = 1;
        bool in_order = true;
        for (size_t i = found.shape.size(); i-- > 0;) {
            last += product(static_cast<uint64_t>(found.shape[i]) - 1, static_cast<uint64_t>(found.strides[i]), absurd);
            last = product(last, 1, absurd);
            in_order = in_order && (found.shape[i] == 1 || found.strides[i] == packed);
            packed *= found.shape[i];
        }
        if (!in_order) {
            tensor.strides = found.strides;
        }
        tensor.bytes = product(last + 1, each, absurd);
        const Place storage = place(found.storage);
        const uint64_t first =
            product(product(found.offset, 1, absurd) + product(found.storage.first, 1, absurd), each, absurd);
        if (first > storage.bytes || tensor.bytes > storage.bytes - first) {
            throw FileError("tensor " + shown(name) + " reaches beyond its storage of " +
                            std::to_string(storage.bytes) + " bytes");
        }
        // One number that stands for many, as expand() makes it, could stand for more than any memory holds.
        if (count * each > storage.bytes) {
            throw FileError("tensor " + shown(name) + " has more numbers than its storage");
        }
        tensor.offset = storage.offset + first;
        tensor.packed_offset = storage.packed_offset;
        tensor.packed_bytes = storage.packed_bytes;
        add(listing, std::move(tensor));
    }

private:
    const Pickle& pickle;
    Listing& listing;
    const std::function<Place(const Pickle::Storage&)>& place;
    std::unordered_set<int64_t> seen;
};

// Where a name comes twice, as in files with averaged weights, the later tensor is meant, as in a dict.
void keep_last(Listing& listing) {
    std::unordered_map<std::string, size_t> last;
    for (size_t i = 0; i < listing.tensors.size(); ++i) {
        last[listing.tensors[i].name] = i;
    }
    std::deque<Tensor> kept;
    for (size_t i = 0; i < listing.tensors.size(); ++i) {
        if (last[listing.tensors[i].name] == i) {
            kept.push_back(std::move(listing.tensors[i]));
        }
    }
    listing.tensors = std::move(kept);
}

}  // namespace

void collect(const Pickle& pickle, Pickle::Value value, Listing& listing,
             const std::function<Place(const Pickle::Storage&)>& place) {
    Collector collector(pickle, listing, place);
    if (value.kind == Pickle::Kind::tensor) {
        collector.put("tensor", pickle.tensor(value));
    } else {
        collector.walk(value, "", 0);
    }
    keep_last(listing);
}

}  // namespace sdcpp::files
