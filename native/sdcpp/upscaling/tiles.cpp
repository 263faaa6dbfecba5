#include "sdcpp/upscaling/tiles.h"

#include <algorithm>

namespace sdcpp {

std::vector<Tile> tiles_along(int side, int tile, int margin) {
    if (tile <= 0 || side <= tile) {
        return {{0, side, 0, side}};
    }
    std::vector<Tile> tiles;
    for (int kept = 0; kept < side;) {
        const int start = std::min(std::max(0, kept - margin), side - tile);
        const int end = start + tile == side ? side : start + tile - margin;
        tiles.push_back({start, tile, kept, end});
        kept = end;
    }
    return tiles;
}

}  // namespace sdcpp
