// Lists PyTorch's files: since 1.6 a zip archive of a pickle and the storages, before that pickles one after the other
// and the storages behind them.
#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "sdcpp/files/inflate.h"
#include "sdcpp/files/listing.h"
#include "sdcpp/files/pickle.h"

namespace sdcpp::files {

namespace {

// --- zip
// ---------------------------------------------------------------------------------------------------------------

constexpr uint32_t local_magic = 0x04034b50;
constexpr uint32_t central_magic = 0x02014b50;
constexpr uint32_t end_magic = 0x06054b50;
constexpr uint32_t end64_magic = 0x06064b50;
constexpr uint32_t end64_locator_magic = 0x07064b50;
constexpr uint64_t end_bytes = 22;
constexpr uint64_t end64_locator_bytes = 20;
constexpr uint64_t central_bytes = 46;
constexpr uint64_t local_bytes = 30;
constexpr uint64_t longest_comment = 65535;
// Deflate cannot do better.
constexpr uint64_t best_ratio = 1032;

struct Entry {
    uint64_t header = 0;  // of its local header
    uint64_t packed = 0;
    uint64_t bytes = 0;
    bool deflated = false;
};

struct Directory {
    uint64_t offset = 0;
    uint64_t entries = 0;
};

Directory find_directory(Input& input) {
    const uint64_t tail = std::min(input.size(), end_bytes + longest_comment);
    std::vector<uint8_t> bytes(static_cast<size_t>(tail));
    input.read(input.size() - tail, bytes.data(), bytes.size());
    for (size_t i = bytes.size() - std::min<size_t>(bytes.size(), end_bytes) + 1; i-- > 0;) {
        if (bytes.size() - i < end_bytes || std::memcmp(bytes.data() + i, &end_magic, sizeof(end_magic)) != 0) {
            continue;
        }
        Cursor cursor(bytes.data() + i, end_bytes);
        Directory found;
        cursor.skip(10);
        found.entries = cursor.number<uint16_t>();
        cursor.skip(4);
        found.offset = cursor.number<uint32_t>();
        const uint64_t end = input.size() - tail + i;
        if (end >= end64_locator_bytes) {
            Cursor locator(input, end - end64_locator_bytes);
            if (locator.number<uint32_t>() == end64_locator_magic) {
                locator.skip(4);
                Cursor end64(input, 0);
                end64.skip(locator.number<uint64_t>());
                if (end64.number<uint32_t>() != end64_magic) {
                    throw FileError("has a damaged zip directory");
                }
                end64.skip(28);
                found.entries = end64.number<uint64_t>();
                end64.skip(8);
                found.offset = end64.number<uint64_t>();
            }
        }
        if (found.offset > end || found.entries > (end - found.offset) / central_bytes) {
            throw FileError("has a damaged zip directory");
        }
        return found;
    }
    throw FileError("is cut off: it is a zip archive without its directory");
}

// Reads the sizes that do not fit into 32 bits.
void read_extra(Cursor& cursor, uint64_t length, Entry& entry) {
    const uint64_t end = cursor.position() + length;
    while (cursor.position() + 4 <= end) {
        const auto id = cursor.number<uint16_t>();
        const auto size = cursor.number<uint16_t>();
        const uint64_t next = cursor.position() + size;
        if (next > end) {
            break;
        }
        if (id == 1) {
            for (uint64_t* field : {&entry.bytes, &entry.packed, &entry.header}) {
                if (*field == 0xffffffff && cursor.position() + 8 <= next) {
                    *field = cursor.number<uint64_t>();
                }
            }
        }
        cursor.skip(next - cursor.position());
    }
    cursor.skip(end - cursor.position());
}

std::unordered_map<std::string, Entry> read_directory(Input& input) {
    const Directory directory = find_directory(input);
    std::unordered_map<std::string, Entry> entries;
    Cursor cursor(input, directory.offset);
    for (uint64_t i = 0; i < directory.entries; ++i) {
        if (cursor.number<uint32_t>() != central_magic) {
            throw FileError("has a damaged zip directory");
        }
        cursor.skip(4);
        const auto flags = cursor.number<uint16_t>();
        const auto method = cursor.number<uint16_t>();
        cursor.skip(8);
        Entry entry;
        entry.packed = cursor.number<uint32_t>();
        entry.bytes = cursor.number<uint32_t>();
        const auto name = cursor.number<uint16_t>();
        const auto extra = cursor.number<uint16_t>();
        const auto comment = cursor.number<uint16_t>();
        cursor.skip(8);
        entry.header = cursor.number<uint32_t>();
        const std::string path = cursor.text(name);
        read_extra(cursor, extra, entry);
        cursor.skip(comment);
        entry.deflated = method == 8;
        if ((method != 0 && method != 8) || (flags & 1) != 0) {
            throw FileError("packs " + shown(path) + " in a way that PyTorch does not read");
        }
        if (entry.packed > input.size() ||
            (entry.deflated ? entry.bytes / best_ratio > entry.packed : entry.bytes != entry.packed)) {
            throw FileError("has a damaged zip directory at " + shown(path));
        }
        entries[path] = entry;
    }
    return entries;
}

// Returns the position of an entry's bytes.
uint64_t entry_data(Input& input, const Entry& entry) {
    Cursor cursor(input, 0);
    cursor.skip(entry.header);
    if (cursor.number<uint32_t>() != local_magic) {
        throw FileError("has a damaged zip directory");
    }
    cursor.skip(22);
    const auto name = cursor.number<uint16_t>();
    const auto extra = cursor.number<uint16_t>();
    const uint64_t data = entry.header + local_bytes + name + extra;
    if (data > input.size() || entry.packed > input.size() - data) {
        throw FileError("is cut off: an entry of it ends behind its " + std::to_string(input.size()) + " bytes");
    }
    return data;
}

uint64_t storage_bytes(const Pickle::Storage& storage) {
    return product(storage.numbers, storage.dtype == nullptr ? 1 : storage.dtype->bytes,
                   "holds a storage of more bytes than a file can hold");
}

void need_tensors(const Listing& listing) {
    if (listing.tensors.empty() && listing.left_out.empty()) {
        throw FileError("is a PyTorch file without tensors");
    }
}

}  // namespace

bool is_zip(Input& input) {
    uint32_t magic = 0;
    if (input.size() >= sizeof(magic)) {
        input.read(0, &magic, sizeof(magic));
    }
    return magic == local_magic;
}

Listing list_torch_zip(Input& input) {
    const auto entries = read_directory(input);
    const std::string pickle_name = "data.pkl";
    auto pickled = entries.end();
    for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
        if ((entry->first == pickle_name || ends_with(entry->first, "/" + pickle_name)) &&
            (pickled == entries.end() || entry->first.size() < pickled->first.size())) {
            pickled = entry;
        }
    }
    if (pickled == entries.end()) {
        throw FileError("is a zip archive, but none of PyTorch's: it holds no data.pkl");
    }
    // Weights take more of a file than their names.
    if (pickled->second.bytes > input.size()) {
        throw FileError("has a damaged zip directory at " + shown(pickled->first));
    }
    const std::string folder = pickled->first.substr(0, pickled->first.size() - pickle_name.size());
    std::vector<uint8_t> bytes(static_cast<size_t>(pickled->second.bytes));
    const uint64_t data = entry_data(input, pickled->second);
    if (pickled->second.deflated) {
        inflate([&](uint64_t position, void* to, size_t count) { input.read(position, to, count); }, data,
                pickled->second.packed, 0, bytes.data(), bytes.size());
    } else {
        input.read(data, bytes.data(), bytes.size());
    }
    Cursor cursor(bytes.data(), bytes.size());
    Pickle pickle(input.size());
    const Pickle::Value value = pickle.read(cursor);
    Listing listing;
    listing.format = "PyTorch";
    std::unordered_map<std::string, Place> places;
    collect(pickle, value, listing, [&](const Pickle::Storage& storage) {
        const auto known = places.find(storage.key);
        if (known != places.end()) {
            return known->second;
        }
        const auto found = entries.find(folder + "data/" + storage.key);
        if (found == entries.end()) {
            throw FileError("lacks the storage " + shown(storage.key) + " of its tensors");
        }
        Place place;
        place.bytes = found->second.bytes;
        const uint64_t begin = entry_data(input, found->second);
        if (found->second.deflated) {
            place.packed_offset = begin;
            place.packed_bytes = std::max<uint64_t>(found->second.packed, 1);
        } else {
            place.offset = begin;
        }
        return places[storage.key] = place;
    });
    need_tensors(listing);
    return listing;
}

bool is_pickle(Input& input) {
    uint8_t start[2] = {};
    if (input.size() >= sizeof(start)) {
        input.read(0, start, sizeof(start));
    }
    return start[0] == 0x80 && start[1] >= 2 && start[1] <= 5;
}

Listing list_torch_legacy(Input& input) {
    const std::string magic = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    constexpr int64_t protocol = 1001;
    constexpr uint64_t count_bytes = 8;  // before each storage
    using Kind = Pickle::Kind;

    Cursor cursor(input);
    Pickle pickle(input.size());
    Pickle::Value value = pickle.read(cursor);
    if (value.kind == Kind::large && pickle.text(value) == magic) {
        const Pickle::Value version = pickle.read(cursor);
        if (version.kind != Kind::integer || version.number != protocol) {
            throw FileError("is a PyTorch file of an unknown version");
        }
        const Pickle::Value system = pickle.read(cursor);
        if (system.kind == Kind::dict) {
            const auto& items = pickle.items(system);
            for (size_t i = 0; i + 1 < items.size(); i += 2) {
                if (items[i].kind == Kind::text && pickle.text(items[i]) == "little_endian" &&
                    items[i + 1].kind == Kind::boolean && items[i + 1].number == 0) {
                    throw FileError("was written on a big-endian machine");
                }
            }
        }
        value = pickle.read(cursor);
    }
    Listing listing;
    listing.format = "PyTorch";
    const Pickle::Value keys = pickle.read(cursor);
    std::unordered_map<std::string, Place> places;
    if (keys.kind != Kind::list) {
        throw FileError("is a pickle, but none of PyTorch's");
    }
    uint64_t position = cursor.position();
    for (const Pickle::Value key : pickle.items(keys)) {
        const auto known = key.kind == Kind::text ? pickle.storages().find(pickle.text(key)) : pickle.storages().end();
        if (known == pickle.storages().end()) {
            throw FileError("has a damaged pickle: it lists a storage that it does not describe");
        }
        Place place;
        place.bytes = storage_bytes(known->second);
        place.offset = position + count_bytes;
        if (place.offset > input.size() || place.bytes > input.size() - place.offset) {
            throw FileError("is cut off: storage " + shown(known->first) + " ends behind its " +
                            std::to_string(input.size()) + " bytes");
        }
        position = place.offset + place.bytes;
        places[known->first] = place;
    }
    collect(pickle, value, listing, [&](const Pickle::Storage& storage) {
        const auto found = places.find(storage.key);
        if (found == places.end()) {
            throw FileError("lacks the storage " + shown(storage.key) + " of its tensors");
        }
        return found->second;
    });
    need_tensors(listing);
    return listing;
}

}  // namespace sdcpp::files
