// Products of grouped rows with the matrices of all experts.
#include "expert_products.h"

#include <algorithm>

#include "multiply.h"
#include "scratch.h"

namespace blockexport {
namespace {

constexpr int64_t kNever = INT64_MAX;

}  // namespace

PanelRows DenseExperts::panel_rows() { return {path().fp32.tiles ? kManyDenseRows : kNever, kDenseRows}; }

void DenseExperts::load(const Context& context, const float* rows, const Grouping& grouping) {
  rows_ = rows;
  first_panel_row_ = grouping.num_few_rows;
  const int64_t many = grouping.num_rows() - first_panel_row_;
  panels_ = many ? dense_panels(context, {rows + first_panel_row_ * k_, many, k_, nullptr, 0.0f}) : nullptr;
}

void DenseExperts::multiply(const Group& group, int64_t first, int64_t count, float* y) const {
  const float* w = w_ + (group.expert * n_ + first) * k_;
  if (!group.many) return path().fp32.dot(k_, rows_ + group.row * k_, group.num_rows, w, count, y, count);
  thread_local std::vector<Line> memory;
  const float* panels = panels_ + (group.row - first_panel_row_) * k_;
  for (int64_t at = 0; at < count; at += kDenseColumns) {
    path().fp32.tiles(k_, panels, group.num_rows, w + at * k_, std::min(kDenseColumns, count - at),
                       scratch<float>(memory, dense_scratch(group.num_rows)), y + at, count);
  }
}

PanelRows NBitsExperts::panel_rows() { return {path().tiles ? kManyRows : kNever, kTileRows}; }

void NBitsExperts::load(const Context& context, const float* rows, const Grouping& grouping) {
  first_panel_row_ = grouping.num_few_rows;
  const bool one_zero = all_.zeros == nullptr;
  const int64_t many = grouping.num_rows() - first_panel_row_;
  const int64_t k = layout_.k;
  if (first_panel_row_) few_.emplace(context, layout_, Rows{rows, first_panel_row_, k, nullptr, 0.0f}, one_zero, false);
  if (!many) return;
  many_.emplace(context, layout_, Rows{rows + first_panel_row_ * k, many, k, nullptr, 0.0f}, one_zero, true);
}

void NBitsExperts::multiply(const Group& group, int64_t first, int64_t count, float* y) const {
  const Matrix w = of(group.expert);
  if (!group.many) {
    for (int64_t r = 0; r < group.num_rows; ++r) {
      path().dot(layout_, few_->records(group.row + r), w, first, count, y + r * count);
    }
    return;
  }
  thread_local std::vector<Line> memory;
  for (int64_t at = 0; at < count; at += kTileColumns) {
    path().tiles(layout_, many_->panels(group.row - first_panel_row_), group.num_rows, w, first + at,
                 std::min<int64_t>(kTileColumns, count - at), scratch<uint8_t>(memory, unpacked_bytes(layout_)), y + at,
                 count);
  }
}

Matrix NBitsExperts::of(int64_t expert) const {
  const int64_t row = expert * n_;
  return {all_.codes + row * layout_.row_bytes(), all_.scales + row * layout_.blocks,
          all_.zeros ? all_.zeros + row * layout_.zeros_bytes() : nullptr, nullptr, n_};
}

}  // namespace blockexport
