// The tables of a vocabulary, which every model that is loaded makes anew: tens of thousands of entries, none of which
// is an allocation of its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sdcpp {

// Numbers by symbol, or by pair of symbols: a hash table with as much of std::map's interface as tokenizers use.
template <typename Key>
class SymbolMap {
public:
    struct Entry {
        uint64_t begin;   // of its letters, both symbols' one behind the other
        uint32_t first;   // letters of the first symbol
        uint32_t length;  // of both
        int second;       // the number
    };

    // Makes an entry of 0 where there is none.
    int& operator[](const Key& key) {
        if (slots.size() < 2 * (entries.size() + 1)) {
            grow();
        }
        uint32_t& slot = slots[place(key)];
        if (slot == 0) {
            entries.push_back({letters.size(), static_cast<uint32_t>(first(key).size()), length(key), 0});
            letters.append(first(key)).append(second(key));
            slot = static_cast<uint32_t>(entries.size());
        }
        return entries[slot - 1].second;
    }

    const Entry* find(const Key& key) const {
        const uint32_t slot = slots.empty() ? 0 : slots[place(key)];
        return slot == 0 ? nullptr : &entries[slot - 1];
    }

    const Entry* end() const { return nullptr; }

    int at(const Key& key) const {
        const Entry* found = find(key);
        if (found == nullptr) {
            throw std::out_of_range("a symbol is not in the vocabulary");
        }
        return found->second;
    }

private:
    using Pair = std::pair<std::u32string, std::u32string>;

    static const std::u32string& first(const std::u32string& key) { return key; }
    static const std::u32string& first(const Pair& key) { return key.first; }
    static const std::u32string& second(const Pair& key) { return key.second; }
    static const std::u32string& second(const std::u32string&) {
        static const std::u32string none;
        return none;
    }
    static uint32_t length(const Key& key) { return static_cast<uint32_t>(first(key).size() + second(key).size()); }

    // FNV-1a of the letters, not of where the first symbol ends; its high bits, which are the better mixed ones, below.
    static uint64_t hash(const char32_t* text, size_t size, uint64_t value) {
        for (size_t i = 0; i < size; ++i) {
            value = (value ^ text[i]) * 0x100000001b3;
        }
        return value;
    }
    static constexpr uint64_t basis = 0xcbf29ce484222325;
    static size_t folded(uint64_t value) { return static_cast<size_t>(value ^ (value >> 32)); }

    bool equal(const Entry& entry, const Key& key) const {
        const char32_t* text = letters.data() + entry.begin;
        return entry.first == first(key).size() && entry.length == length(key) &&
               std::equal(first(key).begin(), first(key).end(), text) &&
               std::equal(second(key).begin(), second(key).end(), text + entry.first);
    }

    // Returns the slot of a key, or the empty one where it would be.
    size_t place(const Key& key) const {
        const uint64_t value = hash(first(key).data(), first(key).size(), basis);
        size_t slot = folded(hash(second(key).data(), second(key).size(), value)) & (slots.size() - 1);
        while (slots[slot] != 0 && !equal(entries[slots[slot] - 1], key)) {
            slot = (slot + 1) & (slots.size() - 1);
        }
        return slot;
    }

    void grow() {
        slots.assign(std::max<size_t>(16, 2 * slots.size()), 0);
        for (size_t i = 0; i < entries.size(); ++i) {
            size_t slot = folded(hash(letters.data() + entries[i].begin, entries[i].length, basis)) & (slots.size() - 1);
            while (slots[slot] != 0) {
                slot = (slot + 1) & (slots.size() - 1);
            }
            slots[slot] = static_cast<uint32_t>(i + 1);
        }
    }

    std::u32string letters;
    std::vector<Entry> entries;
    std::vector<uint32_t> slots;  // a power of two of them: which entry, from 1 on
};

// Symbols by their numbers, which begin at 0.
class SymbolList {
public:
    std::u32string& operator[](int number) {
        if (static_cast<size_t>(number) >= symbols.size()) {
            symbols.resize(static_cast<size_t>(number) + 1);
        }
        return symbols[static_cast<size_t>(number)];
    }
    const std::u32string& at(int number) const { return symbols.at(static_cast<size_t>(number)); }

private:
    std::vector<std::u32string> symbols;
};

}  // namespace sdcpp
