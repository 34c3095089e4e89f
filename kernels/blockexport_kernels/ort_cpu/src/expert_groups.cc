// Tokens grouped by the experts that they chose.
#include "expert_groups.h"

namespace blockexport {

Grouping::Grouping(const Routing& routing, int64_t first, int64_t count, PanelRows panels) {
  const int64_t begin = first * routing.k;
  const int64_t end = begin + count * routing.k;
  std::vector<int64_t> sizes(static_cast<size_t>(routing.num_experts));
  for (int64_t at = begin; at < end; ++at) ++sizes[static_cast<size_t>(routing.experts[at])];

  int64_t row = 0;
  std::vector<int64_t> next(sizes.size());  // row of each expert's next token
  for (const bool many : {false, true}) {
    for (int64_t expert = 0; expert < routing.num_experts; ++expert) {
      const int64_t size = sizes[static_cast<size_t>(expert)];
      if (size == 0 || (size >= panels.least) != many) continue;
      groups.push_back({expert, row, size, many});
      next[static_cast<size_t>(expert)] = row;
      row += many ? (size + panels.multiple - 1) / panels.multiple * panels.multiple : size;
    }
    if (!many) num_few_rows = row;
  }

  tokens.resize(static_cast<size_t>(row));
  weights.resize(static_cast<size_t>(row));
  for (int64_t at = begin; at < end; ++at) {
    const size_t to = static_cast<size_t>(next[static_cast<size_t>(routing.experts[at])]++);
    tokens[to] = at / routing.k;
    weights[to] = routing.weights[at];
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const int64_t stop = i + 1 < groups.size() ? groups[i + 1].row : row;
    const int64_t last = groups[i].row + groups[i].num_rows - 1;
    for (int64_t at = last + 1; at < stop; ++at) tokens[static_cast<size_t>(at)] = tokens[static_cast<size_t>(last)];
  }
}

}  // namespace blockexport
