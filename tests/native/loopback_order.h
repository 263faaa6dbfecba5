// Happens-before between the host and the streams, kept with vector clocks, and the accesses to memory checked by it.
// Nothing here depends on when work really runs: only on what was given to which stream and who waited for whom.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace loopback {

// The host or a stream, as an index into vector clocks.
using Agent = uint32_t;
constexpr Agent HOST = 0;
constexpr Agent NOBODY = UINT32_MAX;

// One operation of an agent on memory.
struct Access {
    Agent agent = NOBODY;
    uint64_t tick = 0;
    const char* what = "";
};

// For each agent, up to which of its operations something is known to have completed.
class VectorClock {
public:
    uint64_t at(Agent agent) const { return agent < ticks_.size() ? ticks_[agent] : 0; }
    void set(Agent agent, uint64_t tick);
    void join(const VectorClock& other);
    bool covers(const VectorClock& other) const;
    bool covers(const Access& access) const { return access.tick <= at(access.agent); }

private:
    std::vector<uint64_t> ticks_;
};

enum class Conflict { NONE, UNINITIALISED, READ_BEFORE_WRITE_COMPLETED, WRITE_WHILE_READ, WRITE_WHILE_WRITTEN };

struct Verdict {
    Conflict conflict = Conflict::NONE;
    Access other;         // the operation that is not ordered before
    uint64_t offset = 0;  // first byte concerned
};

// The last write and the reads since then, for every byte of one piece of memory.
class AccessMap {
public:
    AccessMap(uint64_t size, bool initialised);

    // Books an access to [begin, end). `known` is what has completed before it; `host` is what the host knows, and so
    // what every later operation will know, which lets settled accesses be forgotten.
    Verdict read(uint64_t begin, uint64_t end, const Access& access, const VectorClock& known, const VectorClock& host);
    Verdict write(uint64_t begin, uint64_t end, const Access& access, const VectorClock& known,
                  const VectorClock& host);

    // Finds an access that `known` does not cover.
    Verdict unfinished(const VectorClock& known) const;

    size_t span_count() const { return spans_.size(); }

private:
    struct Span {
        uint64_t end = 0;
        Access writer;  // agent NOBODY: never written
        std::vector<Access> readers;
    };
    using Spans = std::map<uint64_t, Span>;

    static void settle(Span& span, const VectorClock& host);
    static bool same(const Span& a, const Span& b);
    Spans::iterator split(uint64_t at);
    void merge(uint64_t begin, uint64_t end);

    Spans spans_;
};

}  // namespace loopback
