// Reads pickles as far as PyTorch's files need it.
#include "sdcpp/files/pickle.h"

#include <algorithm>
#include <utility>

namespace sdcpp::files {

namespace {

// A checkpoint takes some 50 objects a tensor, and its file more than 8 bytes for each of them.
constexpr uint64_t least_objects = uint64_t{1} << 16;
constexpr uint64_t bytes_an_object = 8;

struct StorageType {
    const char* name;
    const char* dtype;
};

constexpr StorageType storage_types[] = {
    {"Double", "F64"}, {"Float", "F32"}, {"Half", "F16"}, {"BFloat16", "BF16"}, {"Long", "I64"},         {"Int", "I32"},
    {"Short", "I16"},  {"Char", "I8"},   {"Byte", "U8"},  {"Bool", "BOOL"},     {"ComplexFloat", "C64"},
};
constexpr StorageType torch_types[] = {
    {"float64", "F64"},
    {"float32", "F32"},
    {"float16", "F16"},
    {"bfloat16", "BF16"},
    {"int64", "I64"},
    {"int32", "I32"},
    {"int16", "I16"},
    {"int8", "I8"},
    {"uint8", "U8"},
    {"bool", "BOOL"},
    {"uint16", "U16"},
    {"uint32", "U32"},
    {"uint64", "U64"},
    {"complex64", "C64"},
    {"double", "F64"},
    {"float", "F32"},
    {"float8_e4m3fn", "F8_E4M3"},
    {"float8_e5m2", "F8_E5M2"},
};

[[noreturn]] void damaged(const char* why) {
    throw FileError(std::string("has a damaged pickle: ") + why);
}

// Returns the type that a global names, such as torch.FloatStorage or torch.float16; nullptr: none that is known.
template <size_t count>
const Dtype* named_type(const StorageType (&table)[count], const std::string& global, const std::string& suffix) {
    for (const auto& entry : table) {
        if (global == std::string("torch.") + entry.name + suffix) {
            return dtype_of(entry.dtype);
        }
    }
    return nullptr;
}

}  // namespace

Pickle::Pickle(uint64_t file_bytes) : most_objects(std::max(least_objects, file_bytes / bytes_an_object)) {}

void Pickle::count(uint64_t more) {
    objects += more;
    if (objects > most_objects) {
        damaged("it makes more objects than its size warrants");
    }
}

void Pickle::push(Value value) {
    count();
    stack.push_back(value);
}

void Pickle::push(Kind kind, std::vector<Value> items) {
    containers.push_back(std::move(items));
    push({kind, static_cast<int64_t>(containers.size()) - 1});
}

void Pickle::push_text(std::string text, Kind kind) {
    texts.push_back(std::move(text));
    push({kind, static_cast<int64_t>(texts.size()) - 1});
}

Pickle::Value& Pickle::top() {
    if (stack.empty() || stack.back().kind == Kind::mark) {
        damaged("it takes what it never made");
    }
    return stack.back();
}

Pickle::Value Pickle::pop() {
    const Value value = top();
    stack.pop_back();
    return value;
}

std::vector<Pickle::Value> Pickle::pop_to_mark() {
    size_t mark = stack.size();
    do {
        if (mark == 0) {
            damaged("a mark is missing");
        }
        --mark;
    } while (stack[mark].kind != Kind::mark);
    std::vector<Value> items(stack.begin() + static_cast<std::ptrdiff_t>(mark) + 1, stack.end());
    stack.resize(mark);
    return items;
}

std::vector<Pickle::Value>& Pickle::container(Value value, Kind a, Kind b) {
    if (value.kind != a && value.kind != b) {
        damaged("it adds items to what has none");
    }
    return containers[static_cast<size_t>(value.number)];
}

void Pickle::memo_put(uint64_t index) {
    memo[index] = top();
}

void Pickle::memo_get(uint64_t index) {
    const auto found = memo.find(index);
    if (found == memo.end()) {
        damaged("it recalls what it never noted");
    }
    push(found->second);
}

void Pickle::persistent() {
    const Value id = pop();
    if (id.kind != Kind::tuple || items(id).size() < 5) {
        damaged("a storage is described in another way than PyTorch's");
    }
    const auto& parts = items(id);
    if (parts[0].kind != Kind::text || text(parts[0]) != "storage" || parts[1].kind != Kind::global ||
        (parts[2].kind != Kind::text && parts[2].kind != Kind::integer) || parts[4].kind != Kind::integer ||
        parts[4].number < 0) {
        damaged("a storage is described in another way than PyTorch's");
    }
    Storage storage;
    if (parts[2].kind == Kind::text && text(parts[2]).size() > longest_name) {
        damaged("the name of a storage is too long");
    }
    storage.key = parts[2].kind == Kind::text ? text(parts[2]) : std::to_string(parts[2].number);
    storage.numbers = static_cast<uint64_t>(parts[4].number);
    const std::string& type = text(parts[1]);
    if (type != "torch.storage.UntypedStorage" && type != "torch.UntypedStorage") {
        storage.dtype = named_type(storage_types, type, "Storage");
        if (storage.dtype == nullptr) {
            throw FileError("holds a " + shown(type) + ", which this engine does not know");
        }
    }
    // Before 1.6 a storage could be a part of another one: (key, first, size).
    if (parts.size() > 5 && parts[5].kind == Kind::tuple && items(parts[5]).size() == 3 &&
        items(parts[5])[1].kind == Kind::integer && items(parts[5])[1].number >= 0) {
        storage.first = static_cast<uint64_t>(items(parts[5])[1].number);
    } else {
        named[storage.key] = storage;
    }
    count(storage.key.size() / 8 + 8);
    storage_values.push_back(std::move(storage));
    push({Kind::storage, static_cast<int64_t>(storage_values.size()) - 1});
}

// What torch.save writes of a tensor: the function that would make it again, and what that is called with.
Pickle::Value Pickle::rebuild(const std::string& function, const std::vector<Value>& arguments) {
    constexpr size_t most_dimensions = 8;
    constexpr uint64_t weight = 16;  // it takes as much memory as so many objects
    count(weight);
    const bool untyped = function == "torch._utils._rebuild_tensor_v3";
    if (arguments.size() < (untyped ? 7U : 4U) || arguments[0].kind != Kind::storage ||
        arguments[1].kind != Kind::integer || arguments[1].number < 0 || arguments[2].kind != Kind::tuple ||
        arguments[3].kind != Kind::tuple || items(arguments[2]).size() != items(arguments[3]).size() ||
        items(arguments[2]).size() > most_dimensions) {
        damaged("a tensor is described in another way than PyTorch's");
    }
    Tensor tensor;
    tensor.storage = storage_values[static_cast<size_t>(arguments[0].number)];
    tensor.offset = static_cast<uint64_t>(arguments[1].number);
    tensor.dtype = tensor.storage.dtype;
    if (untyped) {
        if (arguments[6].kind != Kind::global) {
            damaged("a tensor is described in another way than PyTorch's");
        }
        tensor.dtype = named_type(torch_types, text(arguments[6]), "");
        tensor.type = text(arguments[6]).substr(0, 32);
    } else if (tensor.dtype == nullptr) {
        damaged("a tensor has no type");
    }
    for (size_t i = 0; i < items(arguments[2]).size(); ++i) {
        const Value size = items(arguments[2])[i];
        const Value stride = items(arguments[3])[i];
        if (size.kind != Kind::integer || stride.kind != Kind::integer || size.number < 0 || stride.number < 0) {
            damaged("a tensor has a dimension that is no number");
        }
        tensor.shape.push_back(size.number);
        tensor.strides.push_back(stride.number);
    }
    tensors.push_back(std::move(tensor));
    return {Kind::tensor, static_cast<int64_t>(tensors.size()) - 1};
}

void Pickle::call() {
    const Value arguments = pop();
    const Value callable = pop();
    if (callable.kind != Kind::global || arguments.kind != Kind::tuple) {
        push(Kind::object, {});
        return;
    }
    const std::string* name = &text(callable);
    const std::vector<Value>* with = &items(arguments);
    // A subclass of a tensor: (function, class, arguments, state).
    if (*name == "torch._tensor._rebuild_from_type_v2" && with->size() >= 3 && (*with)[0].kind == Kind::global &&
        (*with)[2].kind == Kind::tuple) {
        name = &text((*with)[0]);
        with = &items((*with)[2]);
    }
    const std::string& function = *name;
    const std::vector<Value>& given = *with;
    if (function == "torch._utils._rebuild_tensor" || function == "torch._utils._rebuild_tensor_v2" ||
        function == "torch._utils._rebuild_tensor_v3") {
        push(rebuild(function, given));
    } else if ((function == "torch._utils._rebuild_parameter" ||
                function == "torch._utils._rebuild_parameter_with_state" ||
                function == "torch.nn.parameter.Parameter") &&
               !given.empty()) {
        push(given[0]);
    } else if (function == "torch.Size" && given.size() == 1 && given[0].kind == Kind::tuple) {
        push(given[0]);
    } else if (function == "collections.OrderedDict" && given.size() == 1 && given[0].kind == Kind::list) {
        std::vector<Value> pairs;
        for (const Value pair : items(given[0])) {
            count();
            if ((pair.kind == Kind::tuple || pair.kind == Kind::list) && items(pair).size() == 2) {
                pairs.insert(pairs.end(), items(pair).begin(), items(pair).end());
            }
        }
        push(Kind::dict, std::move(pairs));
    } else if (function == "collections.OrderedDict" || function == "collections.defaultdict") {
        push(Kind::dict, {});
    } else {
        push(Kind::object, {});
    }
}

// Gives an object its state: a dict, or a pair of a dict and one of slots.
void Pickle::build() {
    const Value state = pop();
    const Value made = top();
    if (made.kind != Kind::object && made.kind != Kind::dict) {
        return;
    }
    const bool pair = state.kind == Kind::tuple && items(state).size() == 2;
    for (const Value part : pair ? items(state) : std::vector<Value>{state}) {
        if (part.kind == Kind::dict && part.number != made.number) {
            const auto& more = items(part);
            count(more.size());
            auto& known = containers[static_cast<size_t>(made.number)];
            known.insert(known.end(), more.begin(), more.end());
        }
    }
}

void Pickle::step(Cursor& cursor, uint8_t opcode) {
    switch (opcode) {
        case 0x80:  // PROTO
            cursor.skip(1);
            break;
        case 0x95:  // FRAME
            cursor.skip(8);
            break;
        case '(':
            push({Kind::mark, 0});
            break;
        case 'N':
            push({Kind::none, 0});
            break;
        case 0x88:
        case 0x89:  // NEWTRUE, NEWFALSE
            push({Kind::boolean, opcode == 0x88 ? 1 : 0});
            break;
        case 'K':
            push({Kind::integer, cursor.number<uint8_t>()});
            break;
        case 'M':
            push({Kind::integer, cursor.number<uint16_t>()});
            break;
        case 'J':
            push({Kind::integer, cursor.number<int32_t>()});
            break;
        case 'I':
        case 'L':
        case 'F':  // numbers as text: of protocol 0, which torch writes none of
            cursor.line();
            push({Kind::other, 0});
            break;
        case 'G':
            cursor.skip(8);
            push({Kind::other, 0});
            break;
        case 0x8A:
        case 0x8B: {  // LONG1, LONG4
            const uint64_t length = opcode == 0x8A ? cursor.number<uint8_t>() : cursor.number<uint32_t>();
            std::string digits = cursor.text(length);
            if (length > 7) {
                push_text(std::move(digits), Kind::large);
            } else {
                const bool negative = !digits.empty() && (digits.back() & 0x80) != 0;
                digits.resize(8, negative ? '\xff' : '\0');
                uint64_t value = 0;
                for (size_t i = 8; i-- > 0;) {
                    value = value << 8 | static_cast<uint8_t>(digits[i]);
                }
                push({Kind::integer, static_cast<int64_t>(value)});
            }
            break;
        }
        case 'S':
        case 'V':
            push_text(cursor.line());
            break;
        case 'U':
        case 'C':
        case 0x8C:  // texts and bytes with a length of 1 byte
            push_text(cursor.text(cursor.number<uint8_t>()));
            break;
        case 'T':
        case 'B':
        case 'X':  // of 4 bytes
            push_text(cursor.text(cursor.number<uint32_t>()));
            break;
        case 0x8D:
        case 0x8E:
        case 0x96:  // of 8 bytes
            push_text(cursor.text(cursor.number<uint64_t>()));
            break;
        case '}':
            push(Kind::dict, {});
            break;
        case ']':
        case 0x8F:  // EMPTY_SET
            push(Kind::list, {});
            break;
        case ')':
            push(Kind::tuple, {});
            break;
        case 't':
            push(Kind::tuple, pop_to_mark());
            break;
        case 'l':
        case 0x91:  // FROZENSET
            push(Kind::list, pop_to_mark());
            break;
        case 'd':
            push(Kind::dict, pop_to_mark());
            break;
        case 0x85:
        case 0x86:
        case 0x87: {  // TUPLE1 to TUPLE3
            std::vector<Value> items(opcode - 0x84U);
            for (size_t i = items.size(); i-- > 0;) {
                items[i] = pop();
            }
            push(Kind::tuple, std::move(items));
            break;
        }
        case 'a': {
            const Value item = pop();
            auto& items = container(top(), Kind::list, Kind::object);
            if (top().kind == Kind::list) {
                items.push_back(item);
            }
            break;
        }
        case 'e':
        case 0x90: {  // APPENDS, ADDITEMS
            const auto more = pop_to_mark();
            auto& items = container(top(), Kind::list, Kind::object);
            if (top().kind == Kind::list) {
                items.insert(items.end(), more.begin(), more.end());
            }
            break;
        }
        case 's': {
            const Value value = pop();
            const Value key = pop();
            auto& items = container(top(), Kind::dict, Kind::object);
            items.push_back(key);
            items.push_back(value);
            break;
        }
        case 'u': {
            const auto more = pop_to_mark();
            if (more.size() % 2 != 0) {
                damaged("a key has no value");
            }
            auto& items = container(top(), Kind::dict, Kind::object);
            items.insert(items.end(), more.begin(), more.end());
            break;
        }
        case 'c': {
            std::string module = cursor.line();
            push_text(module + "." + cursor.line(), Kind::global);
            break;
        }
        case 0x93: {  // STACK_GLOBAL
            const Value name = pop();
            const Value module = pop();
            if (name.kind != Kind::text || module.kind != Kind::text) {
                damaged("an import has no name");
            }
            push_text(text(module) + "." + text(name), Kind::global);
            break;
        }
        case 'R':
        case 0x81:  // NEWOBJ
            call();
            break;
        case 0x92:  // NEWOBJ_EX
            pop();
            pop();
            pop();
            push(Kind::object, {});
            break;
        case 'o':
            pop_to_mark();
            push(Kind::object, {});
            break;
        case 'i':
            cursor.line();
            cursor.line();
            pop_to_mark();
            push(Kind::object, {});
            break;
        case 'b':
            build();
            break;
        case 'Q':
            persistent();
            break;
        case 'q':
            memo_put(cursor.number<uint8_t>());
            break;
        case 'r':
            memo_put(cursor.number<uint32_t>());
            break;
        case 0x94:  // MEMOIZE
            memo_put(memo.size());
            break;
        case 'h':
            memo_get(cursor.number<uint8_t>());
            break;
        case 'j':
            memo_get(cursor.number<uint32_t>());
            break;
        case '0':
            if (stack.empty()) {
                damaged("it takes what it never made");
            }
            stack.pop_back();
            break;
        case '1':
            pop_to_mark();
            break;
        case '2':
            push(top());
            break;
        default:
            damaged("it has an instruction that PyTorch's do not have");
    }
}

Pickle::Value Pickle::read(Cursor& cursor) {
    stack.clear();
    memo.clear();
    for (auto opcode = cursor.number<uint8_t>(); opcode != '.'; opcode = cursor.number<uint8_t>()) {
        step(cursor, opcode);
    }
    return pop();
}

}  // namespace sdcpp::files
