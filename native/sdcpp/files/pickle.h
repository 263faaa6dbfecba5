// Reads pickles as far as PyTorch's files need it. Nothing is imported or called: what a pickle would make of Python's
// objects is only noted, each object once, so that its size bounds the work and the memory.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "sdcpp/files/input.h"
#include "sdcpp/files/listing.h"

namespace sdcpp::files {

constexpr size_t longest_name = 4096;  // of a tensor or a storage

class Pickle {
public:
    enum class Kind : uint8_t {
        mark,
        none,
        boolean,
        integer,
        large,  // an integer of more than 7 bytes
        text,
        global,
        tuple,
        list,
        dict,
        object,
        storage,
        tensor,
        other
    };

    // A value: a number, or which one of its kind it is. Small, since a pickle may make one of each byte.
    struct Value {
        Kind kind : 8;
        int64_t number : 56;
    };
    struct Storage {
        std::string key;
        const Dtype* dtype = nullptr;  // nullptr: bytes, whose type the tensor tells
        uint64_t numbers = 0;
        uint64_t first = 0;  // in numbers, of what is a view of another storage
    };
    struct Tensor {
        Storage storage;
        const Dtype* dtype = nullptr;  // nullptr: a type that the engine has no use for
        std::string type;              // the name of such a type
        uint64_t offset = 0;           // in numbers
        std::vector<int64_t> shape;
        std::vector<int64_t> strides;
    };

    // Most objects that a pickle may make, for a file of this size.
    explicit Pickle(uint64_t file_bytes);

    // Reads one pickle and returns what it holds. Throws FileError.
    Value read(Cursor& cursor);

    // Of a text or a global; of a large integer, its bytes.
    const std::string& text(Value value) const { return texts[static_cast<size_t>(value.number)]; }
    // The items of a tuple or list; of a dict or an object, keys and values in turn.
    const std::vector<Value>& items(Value value) const { return containers[static_cast<size_t>(value.number)]; }
    const Tensor& tensor(Value value) const { return tensors[static_cast<size_t>(value.number)]; }
    // Every storage that was named, by its key.
    const std::unordered_map<std::string, Storage>& storages() const { return named; }

private:
    void step(Cursor& cursor, uint8_t opcode);
    void push(Value value);
    void push(Kind kind, std::vector<Value> items);
    void push_text(std::string text, Kind kind = Kind::text);
    Value pop();
    Value& top();
    std::vector<Value> pop_to_mark();
    std::vector<Value>& container(Value value, Kind a, Kind b);
    void memo_put(uint64_t index);
    void memo_get(uint64_t index);
    void persistent();
    void call();
    Value rebuild(const std::string& function, const std::vector<Value>& arguments);
    void build();
    void count(uint64_t more = 1);

    uint64_t objects = 0;
    uint64_t most_objects;
    std::deque<Value> stack;
    std::unordered_map<uint64_t, Value> memo;
    std::deque<std::string> texts;
    std::deque<std::vector<Value>> containers;
    std::deque<Storage> storage_values;
    std::deque<Tensor> tensors;
    std::unordered_map<std::string, Storage> named;
};

// Where the bytes of a storage begin.
struct Place {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint64_t packed_offset = 0;  // as in Tensor
    uint64_t packed_bytes = 0;
};

// Adds every tensor below a value to a listing, under the names of a state dict. place returns where a storage lies, or
// throws FileError.
void collect(const Pickle& pickle, Pickle::Value value, Listing& listing,
             const std::function<Place(const Pickle::Storage&)>& place);

}  // namespace sdcpp::files
