// Names in a text, such as those of textual inversions, that tokenizers take whole.
#pragma once

#include <string>
#include <vector>

namespace sdcpp {

// Returns a text's pieces: each name that stands in it, and what is between them. A name counts where it is a word of
// its own: beside its letters, digits and underscores there are no others. Scripts without spaces between words, from
// Thai to CJK, know no such end. Of names that begin at one place the longest counts.
std::vector<std::string> split_at_names(const std::string& text, const std::vector<std::string>& names);

}  // namespace sdcpp
