#include "loopback_order.h"

#include <algorithm>
#include <iterator>

namespace loopback {

void VectorClock::set(Agent agent, uint64_t tick) {
    if (agent >= ticks_.size()) {
        ticks_.resize(agent + 1);
    }
    ticks_[agent] = tick;
}

void VectorClock::join(const VectorClock& other) {
    if (ticks_.size() < other.ticks_.size()) {
        ticks_.resize(other.ticks_.size());
    }
    for (size_t i = 0; i < other.ticks_.size(); i++) {
        ticks_[i] = std::max(ticks_[i], other.ticks_[i]);
    }
}

bool VectorClock::covers(const VectorClock& other) const {
    for (size_t i = 0; i < other.ticks_.size(); i++) {
        if (other.ticks_[i] > at(static_cast<Agent>(i))) {
            return false;
        }
    }
    return true;
}

AccessMap::AccessMap(uint64_t size, bool initialised) {
    Span all;
    all.end = size;
    all.writer.agent = initialised ? HOST : NOBODY;
    spans_.emplace(0, std::move(all));
}

void AccessMap::settle(Span& span, const VectorClock& host) {
    // Tick 0 of the host stands for every write that nobody needs to wait for any more, so that such spans merge.
    if (span.writer.agent != NOBODY && host.covers(span.writer)) {
        span.writer = Access{HOST, 0, ""};
    }
    span.readers.erase(std::remove_if(span.readers.begin(), span.readers.end(),
                                      [&](const Access& reader) { return host.covers(reader); }),
                       span.readers.end());
}

bool AccessMap::same(const Span& a, const Span& b) {
    if (a.writer.agent != b.writer.agent || a.writer.tick != b.writer.tick || a.readers.size() != b.readers.size()) {
        return false;
    }
    for (size_t i = 0; i < a.readers.size(); i++) {
        if (a.readers[i].agent != b.readers[i].agent || a.readers[i].tick != b.readers[i].tick) {
            return false;
        }
    }
    return true;
}

AccessMap::Spans::iterator AccessMap::split(uint64_t at) {
    auto next = spans_.lower_bound(at);
    if (next != spans_.end() && next->first == at) {
        return next;
    }
    auto span = std::prev(next);
    if (span->second.end <= at) {
        return next;
    }
    Span tail = span->second;
    span->second.end = at;
    return spans_.emplace_hint(next, at, std::move(tail));
}

void AccessMap::merge(uint64_t begin, uint64_t end) {
    auto span = spans_.lower_bound(begin);
    if (span != spans_.begin()) {
        --span;
    }
    while (span != spans_.end() && span->first <= end) {
        auto next = std::next(span);
        if (next != spans_.end() && next->first <= end && same(span->second, next->second)) {
            span->second.end = next->second.end;
            spans_.erase(next);
        } else {
            span = next;
        }
    }
}

Verdict AccessMap::read(uint64_t begin, uint64_t end, const Access& access, const VectorClock& known,
                        const VectorClock& host) {
    Verdict verdict;
    if (begin >= end) {
        return verdict;
    }
    split(end);
    for (auto it = split(begin); it != spans_.end() && it->first < end; ++it) {
        Span& span = it->second;
        if (span.writer.agent == NOBODY) {
            if (verdict.conflict == Conflict::NONE) {
                verdict = Verdict{Conflict::UNINITIALISED, Access{}, it->first};
            }
        } else if (!known.covers(span.writer) &&
                   (verdict.conflict == Conflict::NONE || verdict.conflict == Conflict::UNINITIALISED)) {
            verdict = Verdict{Conflict::READ_BEFORE_WRITE_COMPLETED, span.writer, it->first};
        }
        settle(span, host);
        auto mine = std::find_if(span.readers.begin(), span.readers.end(),
                                 [&](const Access& reader) { return reader.agent == access.agent; });
        if (mine != span.readers.end()) {
            *mine = access;
        } else if (!host.covers(access)) {
            span.readers.push_back(access);
        }
    }
    merge(begin, end);
    return verdict;
}

Verdict AccessMap::write(uint64_t begin, uint64_t end, const Access& access, const VectorClock& known,
                         const VectorClock& host) {
    Verdict verdict;
    if (begin >= end) {
        return verdict;
    }
    split(end);
    auto first = split(begin);
    auto it = first;
    for (; it != spans_.end() && it->first < end; ++it) {
        const Span& span = it->second;
        if (verdict.conflict != Conflict::NONE) {
            continue;
        }
        if (span.writer.agent != NOBODY && !known.covers(span.writer)) {
            verdict = Verdict{Conflict::WRITE_WHILE_WRITTEN, span.writer, it->first};
            continue;
        }
        for (const Access& reader : span.readers) {
            if (!known.covers(reader)) {
                verdict = Verdict{Conflict::WRITE_WHILE_READ, reader, it->first};
                break;
            }
        }
    }
    spans_.erase(first, it);
    Span written;
    written.end = end;
    written.writer = access;
    settle(written, host);
    spans_.emplace(begin, std::move(written));
    merge(begin, end);
    return verdict;
}

Verdict AccessMap::unfinished(const VectorClock& known) const {
    for (const auto& [begin, span] : spans_) {
        if (span.writer.agent != NOBODY && !known.covers(span.writer)) {
            return Verdict{Conflict::WRITE_WHILE_WRITTEN, span.writer, begin};
        }
        for (const Access& reader : span.readers) {
            if (!known.covers(reader)) {
                return Verdict{Conflict::WRITE_WHILE_READ, reader, begin};
            }
        }
    }
    return {};
}

}  // namespace loopback
