// Rows of activations, quantised and laid out for one pass over the weights.
#pragma once
#include "ort.h"
#include "paths.h"

namespace blockexport {

// With fewer rows, unpacking weights for tiles costs more than it saves.
constexpr int64_t kManyRows = 8;

// Rows (count, k) that are multiplied as they are or, with `norm` (k), after an RMSNorm.
struct Rows {
  const float* data;
  int64_t count;
  int64_t k;
  const float* norm;
  float epsilon;

  // `memory` has k.
  const float* row(int64_t index, float* memory) const {
    const float* at = data + index * k;
    if (norm == nullptr) return at;
    path().rms_norm(at, norm, epsilon, k, memory);
    return memory;
  }
};

class Activations {
 public:
  // one_zero: every matrix that follows has the default zero point. The memory belongs to the calling thread and is good
  // until its next Activations in the same form, records or panels.
  Activations(const Context& context, const Layout& layout, const Rows& rows, bool one_zero);
  Activations(const Context& context, const Layout& layout, const Rows& rows, bool one_zero, bool many);

  bool many() const { return many_; }  // Path::tiles is to be used, with panels, and Path::dot with records otherwise
  const Record* records(int64_t row) const { return records_ + row * layout_.groups; }
  const Panel* panels(int64_t row) const { return panels_ + row / kTileRows; }

 private:
  void write_records(int64_t row, Record* records) const;
  void write_panel(int64_t first, int8_t* memory, Panel* panel) const;
  int32_t correction(int32_t sum) const { return -sum * (one_zero_ ? layout_.default_zero() : 1); }

  const Layout& layout_;
  Rows rows_;
  bool one_zero_;
  bool many_;
  Record* records_ = nullptr;
  Panel* panels_ = nullptr;
};

}  // namespace blockexport
