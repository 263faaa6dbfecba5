// Feeds mutated inputs to what reads foreign bytes: model files, prompts, tensor names. Usage: fuzz TARGET SEEDS
// CURRENT FIRST COUNT, where SEEDS is a folder of valid inputs and CURRENT a file that holds the input that is tried.
// Ends the process when one is handled with an access or arithmetic that the sanitizers refuse, with an allocation of
// more than what the target allows (twice its size for files), or for longer than some seconds. The same arguments try
// the same inputs.
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "fuzz_targets.h"

// Of the sanitizers' runtime, whose headers not every compiler brings.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void*, size_t),
                                                         void (*freed)(const volatile void*));

namespace {

using Bytes = std::string;
using Random = std::mt19937_64;

constexpr time_t seconds_an_input = 10;
constexpr size_t allocation_floor = 1 << 20;  // below it the size of an input says nothing
constexpr size_t longest_input = 1 << 20;

std::atomic<size_t> most_allocated{0};  // 0: not watched

void watch(const volatile void*, size_t size) {
    const size_t most = most_allocated;
    if (most != 0 && size > most) {
        most_allocated = 0;
        std::fprintf(stderr, "an allocation of %zu bytes, where %zu are the most\n", size, most);
        std::abort();
    }
}

void too_long(int) {
    const char message[] = "an input takes too long\n";
    if (write(STDERR_FILENO, message, sizeof(message) - 1) > 0) {
        std::abort();
    }
    std::abort();
}

// Of the processor, since a busy machine says nothing of an input.
void watch_time(time_t seconds) {
    const itimerval timer = {{0, 0}, {seconds, 0}};
    setitimer(ITIMER_PROF, &timer, nullptr);
}

uint64_t below(Random& random, uint64_t limit) {
    return limit == 0 ? 0 : random() % limit;
}

// Numbers at which readers go wrong: limits of types, and sizes of this input.
uint64_t odd_number(Random& random, size_t size) {
    const uint64_t numbers[] = {0,
                                1,
                                2,
                                3,
                                4,
                                7,
                                8,
                                31,
                                32,
                                33,
                                127,
                                128,
                                255,
                                256,
                                65535,
                                65536,
                                0x7fffffff,
                                0x80000000,
                                0xffffffff,
                                0x100000000,
                                uint64_t{1} << 60,
                                uint64_t{1} << 62,
                                uint64_t{1} << 63,
                                ~uint64_t{0},
                                ~uint64_t{0} - 7,
                                size,
                                size - 1,
                                size + 1,
                                size * 2};
    return numbers[below(random, std::size(numbers))];
}

// Returns a place to change: mostly near the beginning or the end, where headers and directories lie.
size_t place(Random& random, const Bytes& input) {
    const uint64_t near = std::min<size_t>(input.size(), 512);
    switch (below(random, 4)) {
        case 0:
            return below(random, near);
        case 1:
            return input.size() - near + below(random, near);
        default:
            return below(random, input.size());
    }
}

void put_number(Random& random, Bytes& input) {
    const size_t widths[] = {1, 2, 4, 8};
    const size_t width = widths[below(random, 4)];
    const size_t at = place(random, input);
    uint64_t value = odd_number(random, input.size());
    if (below(random, 3) == 0 && at + width <= input.size()) {
        // A little more or less than what is there: lengths and counts that almost fit.
        value = 0;
        std::memcpy(&value, input.data() + at, width);
        value += below(random, 9) - 4;
    }
    std::memcpy(input.data() + at, &value, std::min(width, input.size() - at));
}

// Replaces a number in text, as in JSON.
void put_digits(Random& random, Bytes& input) {
    size_t at = place(random, input);
    while (at < input.size() && (input[at] < '0' || input[at] > '9')) {
        ++at;
    }
    size_t end = at;
    while (end < input.size() && input[end] >= '0' && input[end] <= '9') {
        ++end;
    }
    const char* odd[] = {"-1", "0", "1e999", "0.5", "null", "[]", "{}", "\"\"", "99999999999999999999999"};
    const std::string value =
        below(random, 2) == 0 ? odd[below(random, std::size(odd))] : std::to_string(odd_number(random, input.size()));
    input.replace(at, end - at, value);
}

void mutate(Random& random, Bytes& input, const std::vector<Bytes>& seeds) {
    if (input.empty()) {
        input.push_back(static_cast<char>(random()));
    }
    const size_t at = place(random, input);
    const size_t length = below(random, std::min<size_t>(input.size() - at, 64)) + 1;
    switch (below(random, 10)) {
        case 0:
            input[at] = static_cast<char>(random());
            break;
        case 1:
            input[at] = static_cast<char>(input[at] ^ (1 << below(random, 8)));
            break;
        case 2:
        case 3:
            put_number(random, input);
            break;
        case 4:
            put_digits(random, input);
            break;
        case 5:
            input.erase(at, length);
            break;
        case 6:  // once more, perhaps very often
            if (const Bytes piece = input.substr(at, length); true) {
                const size_t times = below(random, 8) == 0 ? below(random, 5000) : 1;
                Bytes more;
                for (size_t i = 0; i < times && more.size() < longest_input; ++i) {
                    more += piece;
                }
                input.insert(at, more);
            }
            break;
        case 7:
            input.resize(at);
            break;
        case 8: {
            const Bytes& other = seeds[below(random, seeds.size())];
            const size_t from = below(random, other.size());
            input.replace(at, length, other.substr(from, length));
            break;
        }
        default: {
            const size_t from = below(random, input.size());
            const Bytes piece = input.substr(from, length);
            input.replace(at, std::min(piece.size(), input.size() - at), piece);
            break;
        }
    }
    if (input.size() > longest_input) {
        input.resize(longest_input);
    }
}

Bytes read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

int main(int argc, char** argv) {
    const auto target = argc == 6 ? fuzz::targets().find(argv[1]) : fuzz::targets().end();
    if (target == fuzz::targets().end()) {
        std::fprintf(stderr, "usage: fuzz TARGET SEEDS CURRENT FIRST COUNT\n");
        return 2;
    }
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(argv[2])) {
        paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    std::vector<Bytes> seeds;
    for (const auto& path : paths) {
        seeds.push_back(read_file(path));
    }
    if (seeds.empty()) {
        std::fprintf(stderr, "no seeds\n");
        return 2;
    }
    const std::string current = argv[3];
    const uint64_t first = std::strtoull(argv[4], nullptr, 10);
    const uint64_t count = std::strtoull(argv[5], nullptr, 10);
    __sanitizer_install_malloc_and_free_hooks(watch, [](const volatile void*) {});
    std::signal(SIGPROF, too_long);
    uint64_t taken = 0;
    for (uint64_t i = first; i < first + count; ++i) {
        Random random(i);
        Bytes input = seeds[below(random, seeds.size())];
        // The seeds themselves first, which must be taken.
        if (i < seeds.size()) {
            input = seeds[i];
        } else {
            for (uint64_t changes = below(random, 6) + 1; changes > 0; --changes) {
                mutate(random, input, seeds);
            }
        }
        std::ofstream(current, std::ios::binary | std::ios::trunc)
            .write(input.data(), static_cast<std::streamsize>(input.size()));
        std::printf("%llu\n", static_cast<unsigned long long>(i));
        std::fflush(stdout);
        watch_time(seconds_an_input);
        most_allocated = std::max(allocation_floor, target->second.most * input.size());
        const bool good = target->second.take(current, input);
        most_allocated = 0;
        watch_time(0);
        taken += good ? 1 : 0;
        if (i < seeds.size() && !good) {
            std::fprintf(stderr, "the seed %s is refused\n", paths[i].c_str());
            return 1;
        }
    }
    std::printf("%llu inputs, %llu of them taken\n", static_cast<unsigned long long>(count),
                static_cast<unsigned long long>(taken));
    return 0;
}
