// Tokens grouped by the experts that they chose, so that each expert's weights are read once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace blockexport {

// What a router says of each token: `k` experts and their weights.
struct Routing {
  const int64_t* experts;  // (tokens, k)
  const float* weights;    // (tokens, k)
  int64_t k;
  int64_t num_experts;
};

// The rows [row, row + num_rows) of the grouped matrix, which one expert sees.
struct Group {
  int64_t expert;
  int64_t row;
  int64_t num_rows;
  bool many;  // worth laying out in panels
};

// How rows are laid out for products with many of them: from how many on, and at which multiples they begin.
struct PanelRows {
  int64_t least;
  int64_t multiple;
};

// The grouped matrix: first all groups of few rows, then those of many, each filled up to a multiple by its last row.
struct Grouping {
  std::vector<Group> groups;    // by expert within each kind
  std::vector<int64_t> tokens;  // that each row is a copy of
  std::vector<float> weights;   // of each row in its token's sum
  int64_t num_few_rows = 0;

  // Of the tokens [first, first + count). Every expert of the routing is in range.
  Grouping(const Routing& routing, int64_t first, int64_t count, PanelRows panels);

  int64_t num_rows() const { return static_cast<int64_t>(tokens.size()); }
};

}  // namespace blockexport
