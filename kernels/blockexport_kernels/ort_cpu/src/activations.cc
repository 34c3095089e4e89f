// Rows of activations, quantised and laid out for one pass over the weights.
#include "activations.h"

#include <algorithm>
#include <cstring>

#include "scratch.h"

namespace blockexport {
namespace {

// kTileRows rows of codes, scales and sums, as Path::quantise writes them; each thread has its own.
struct Quantised {
  int8_t* codes[kTileRows];
  float* scales[kTileRows];
  int32_t* sums[kTileRows];

  Quantised(const Layout& layout, const Rows& rows, int64_t first, int64_t num_rows) {
    thread_local std::vector<Line> memory[4];
    auto* normalised = scratch<float>(memory[3], layout.k);
    const int64_t length = layout.groups * layout.group_codes();
    auto* all_codes = scratch<int8_t>(memory[0], kTileRows * length);
    auto* all_scales = scratch<float>(memory[1], kTileRows * layout.blocks);
    auto* all_sums = scratch<int32_t>(memory[2], kTileRows * layout.blocks);
    for (int64_t r = 0; r < num_rows; ++r) {
      codes[r] = all_codes + r * length;
      scales[r] = all_scales + r * layout.blocks;
      sums[r] = all_sums + r * layout.blocks;
      path().quantise(layout, rows.row(first + r, normalised), codes[r], scales[r], sums[r]);
    }
  }
};

int64_t panel_bytes(const Layout& layout) {
  const int64_t bytes = kTileRows * (layout.padded_k() + layout.blocks * int64_t{sizeof(float) + sizeof(int32_t)});
  return (bytes + 63) / 64 * 64;
}

}  // namespace

Activations::Activations(const Context& context, const Layout& layout, const Rows& rows, bool one_zero)
    : Activations(context, layout, rows, one_zero, rows.count >= kManyRows && path().tiles != nullptr) {}

Activations::Activations(const Context& context, const Layout& layout, const Rows& rows, bool one_zero, bool many)
    : layout_(layout), rows_(rows), one_zero_(one_zero), many_(many) {
  thread_local std::vector<Line> memory[3];
  if (!many_) {
    records_ = scratch<Record>(memory[0], rows.count * layout.groups);
    context.parallel(rows.count, [&](int64_t row) { write_records(row, records_ + row * layout.groups); });
    return;
  }
  const int64_t num_panels = (rows.count + kTileRows - 1) / kTileRows;
  auto* bytes = scratch<int8_t>(memory[2], num_panels * panel_bytes(layout));
  panels_ = scratch<Panel>(memory[1], num_panels);
  context.parallel(num_panels, [&](int64_t index) {
    write_panel(index * kTileRows, bytes + index * panel_bytes(layout), panels_ + index);
  });
}

void Activations::write_records(int64_t row, Record* records) const {
  const Quantised from(layout_, rows_, row, 1);
  const int codes_per_lane = layout_.group_codes() / 16;
  for (int64_t group = 0; group < layout_.groups; ++group) {
    Record& record = records[group];
    const int8_t* codes = from.codes[0] + group * layout_.group_codes();
    if (layout_.bits == 8) {
      std::memcpy(record.codes[0], codes, 64);
    } else {
      for (int i = 0; i < 64; i += 4) {
        std::memcpy(record.codes[0] + i, codes + 2 * i, 4);
        std::memcpy(record.codes[1] + i, codes + 2 * i + 4, 4);
      }
    }
    for (int lane = 0; lane < 16; ++lane) {
      const int64_t at = (group * 16 + lane) * codes_per_lane;
      const int64_t block = at / layout_.block;
      const bool inside = block < layout_.blocks;
      record.scale[lane] = inside ? from.scales[0][block] : 0.0f;
      record.correction[lane] = inside && at % layout_.block == 0 ? correction(from.sums[0][block]) : 0;
    }
  }
}

// Rows that are not there repeat the last one; nobody reads their products.
void Activations::write_panel(int64_t first, int8_t* memory, Panel* panel) const {
  const int64_t num_rows = std::min<int64_t>(kTileRows, rows_.count - first);
  const Quantised from(layout_, rows_, first, num_rows);
  auto* corrections = reinterpret_cast<int32_t*>(memory + kTileRows * layout_.padded_k());
  auto* scales = reinterpret_cast<float*>(corrections + kTileRows * layout_.blocks);
  *panel = {memory, corrections, scales};
  for (int64_t step = 0; step < layout_.padded_k() / 4; ++step) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(memory + (step * kTileRows + r) * 4, from.codes[std::min(r, num_rows - 1)] + step * 4, 4);
    }
  }
  for (int64_t block = 0; block < layout_.blocks; ++block) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const int64_t row = std::min(r, num_rows - 1);
      corrections[block * kTileRows + r] = correction(from.sums[row][block]);
      scales[block * kTileRows + r] = from.scales[row][block];
    }
  }
}

}  // namespace blockexport
