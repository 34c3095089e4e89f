// Rows of activations, quantised and laid out for one pass over the weights.
#pragma once
#include "ort.h"
#include "paths.h"

namespace blockexport {

// With fewer rows, unpacking weights for tiles costs more than it saves.
constexpr int64_t kManyRows = 8;

class Activations {
 public:
  // `a` is (rows, layout.k). one_zero: every matrix that follows has the default zero point. The memory belongs to the
  // calling thread and is good until its next Activations in the same form, records or panels.
  Activations(const Context& context, const Layout& layout, const float* a, int64_t rows, bool one_zero);
  Activations(const Context& context, const Layout& layout, const float* a, int64_t rows, bool one_zero, bool many);

  bool many() const { return many_; }  // Path::tiles is to be used, with panels, and Path::dot with records otherwise
  const Record* records(int64_t row) const { return records_ + row * layout_.groups; }
  const Panel* panels(int64_t row) const { return panels_ + row / kTileRows; }

 private:
  void write_records(const float* row, Record* records) const;
  void write_panel(const float* rows, int64_t num_rows, int8_t* memory, Panel* panel) const;
  int32_t correction(int32_t sum) const { return -sum * (one_zero_ ? layout_.default_zero() : 1); }

  const Layout& layout_;
  bool one_zero_;
  bool many_;
  Record* records_ = nullptr;
  Panel* panels_ = nullptr;
};

}  // namespace blockexport
