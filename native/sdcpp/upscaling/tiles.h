// How a picture is cut into tiles of one size that overlap, so that a network which sees each alone draws no seams.
#pragma once

#include <vector>

namespace sdcpp {

// One tile along a side, in pixels.
struct Tile {
    int start;  // of what the network sees
    int size;
    int kept;  // from here on its result is kept,
    int end;   // to here
};

// Returns the tiles along a side. All are of one size, which is the side's where that is no longer than a tile: the
// last one begins earlier instead of being smaller. Of two neighbours, which overlap by two margins at least, each is
// kept up to a margin from where it ends; at the picture's ends all is kept.
std::vector<Tile> tiles_along(int side, int tile, int margin);

}  // namespace sdcpp
