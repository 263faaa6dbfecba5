// Remembers rotary embeddings: the engine computes them anew for each graph, and they are the same for all steps of a
// picture.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

namespace sdcpp {

// Returns what `compute` returns for these arguments, as computed the last time when that was not long ago.
template <typename Layout, typename F>
std::vector<float> rope_remembered(const std::vector<std::vector<float>>& ids, int batch,
                                   const std::vector<float>& thetas, const std::vector<int>& dims,
                                   const std::vector<std::vector<int>>& wrap_dims, Layout layout, F&& compute) {
    using Key = std::tuple<std::vector<std::vector<float>>, int, std::vector<float>, std::vector<int>,
                           std::vector<std::vector<int>>, Layout>;
    constexpr size_t most = 2;  // a prompt and a negative one of another length
    static thread_local std::vector<std::pair<Key, std::vector<float>>> known;
    const auto given = std::tie(ids, batch, thetas, dims, wrap_dims, layout);
    const auto found = std::find_if(known.begin(), known.end(), [&](const auto& entry) { return entry.first == given; });
    if (found != known.end()) {
        std::rotate(known.begin(), found, found + 1);
    } else {
        known.resize(std::min(known.size(), most - 1));
        known.emplace(known.begin(), Key(given), compute());
    }
    return known.front().second;
}

}  // namespace sdcpp
