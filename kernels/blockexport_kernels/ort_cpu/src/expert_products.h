// Products of grouped rows with the matrices of all experts, stacked (experts, n, k).
#pragma once
#include <optional>

#include "activations.h"
#include "expert_groups.h"
#include "ort.h"

namespace blockexport {

class DenseExperts {
 public:
  DenseExperts(const float* w, int64_t n, int64_t k) : w_(w), n_(n), k_(k) {}

  static PanelRows panel_rows();
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }

  // Takes in the grouped rows (num_rows, k), which must stay. The memory for them belongs to the calling thread and is
  // good until its next load.
  void load(const Context& context, const float* rows, const Grouping& grouping);

  // y (group.num_rows, count) = the group's rows times rows [first, first + count) of its expert's matrix.
  void multiply(const Group& group, int64_t first, int64_t count, float* y) const;

 private:
  const float* w_;
  int64_t n_;
  int64_t k_;
  const float* rows_ = nullptr;
  const float* panels_ = nullptr;
  int64_t first_panel_row_ = 0;
};

// The same for quantised matrices (experts, n, k).
class NBitsExperts {
 public:
  NBitsExperts(const Layout& layout, const Matrix& all, int64_t n) : layout_(layout), all_(all), n_(n) {}

  static PanelRows panel_rows();
  int64_t n() const { return n_; }
  int64_t k() const { return layout_.k; }

  void load(const Context& context, const float* rows, const Grouping& grouping);
  void multiply(const Group& group, int64_t first, int64_t count, float* y) const;

 private:
  Matrix of(int64_t expert) const;

  Layout layout_;
  Matrix all_;  // of all experts, one behind the other
  int64_t n_;
  std::optional<Activations> few_;
  std::optional<Activations> many_;
  int64_t first_panel_row_ = 0;
};

}  // namespace blockexport
